"""Every way into a VM, open and waiting: `open_source` makes one of what an operator wrote."""

from tapdev.sources.bind import socket_key
from tapdev.sources.host import Host, LinkError, Source
from tapdev.sources.open import bound_path, open_source

__all__ = ["Host", "LinkError", "Source", "bound_path", "open_source", "socket_key"]
