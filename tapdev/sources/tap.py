"""TAP devices as sources: made here or in another network namespace, or adopted.

The device is left down: whoever has the other side, a bridge or the guest, brings it up.  What we make is gone with
its descriptor.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from tapdev.netns_tap import NetnsError, netns_path, open_tap_in, tun_device
from tapdev.sources.host import LinkError
from tapdev.sources.single import DescriptorSource
from tapdev.tap import TapLink, open_tap

if TYPE_CHECKING:
    from tapdev.spec import LinkSpec

ADVICE: Final = {
    errno.EPERM: "run as root, or let root make it for you: ip tuntap add {name} mode tap user {user}",
    errno.EACCES: "this user may not open /dev/net/tun: run as root, or chmod 0666 /dev/net/tun",
    errno.ENOENT: "there is no /dev/net/tun: modprobe tun; a container needs --device /dev/net/tun",
    errno.ENODEV: "the kernel has no tun driver: modprobe tun",
    errno.EBUSY: "another process has it open; take another name, or end that process",
    errno.EINVAL: "a device of that name is there that is no TAP device, or one with other flags; take another name",
}


def open_tap_source(spec: LinkSpec, mtu: int, offload: bool) -> DescriptorSource:
    """Raises LinkError."""
    name = spec.path or ""
    try:
        fd = open_tap(name) if spec.netns is None else open_tap_in(spec.netns, name)
    except NetnsError as error:
        needs = "; entering a network namespace needs root" if error.errno == errno.EPERM else ""
        raise LinkError(f"{error.strerror} ({netns_path(spec.netns or '')}){needs}") from error
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "").format(name=name, user=os.geteuid())
        raise LinkError(f"TAP device {name}: {error.strerror}{'; ' if advice else ''}{advice}") from error
    return tap_source(spec, fd, mtu, vnet_header=True, offload=offload)


def adopt_tap_source(spec: LinkSpec, fd: int, mtu: int, offload: bool) -> DescriptorSource | None:
    """The source of `fd` if that is a TAP device, or None.  Raises LinkError for a device that is no use."""
    device = tun_device(fd)
    if device is None:
        return None
    if not device.tap:
        raise LinkError(f"descriptor {fd} is TUN device {device.name}, of IP packets; a TAP device (IFF_TAP) is needed")
    os.set_inheritable(fd, False)
    return tap_source(spec, fd, mtu, vnet_header=device.vnet_header, offload=offload)


def tap_source(spec: LinkSpec, fd: int, mtu: int, *, vnet_header: bool, offload: bool) -> DescriptorSource:
    return DescriptorSource(spec, [fd], lambda: TapLink(fd, mtu=mtu, vnet_header=vnet_header, offload=offload))
