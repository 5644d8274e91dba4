"""Every route of one instance.  Who has more of them adds a table here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.control.api import changes, connecting, reports
from vpnkit.control.openapi import with_document

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vpnkit.control.api import Operator
    from vpnkit.control.routes import Route, Router


def instance_router(operator: Operator, *tables: Iterable[Route]) -> Router:
    """What the control socket of an instance answers; `tables` are further ones."""
    return with_document(reports(operator), changes(operator), [connecting(operator.connect)], *tables)
