"""Every route of one instance.  Who has more of them adds a table here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.control.api import changes, reports
from vpnkit.control.gvproxy import gvproxy_routes
from vpnkit.control.gvproxy_dns import gvproxy_dns_routes
from vpnkit.control.gvproxy_forwards import GvproxyForwards
from vpnkit.control.metrics import metrics_routes
from vpnkit.control.names import names_routes
from vpnkit.control.openapi import with_document
from vpnkit.control.port_control import port_control_routes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vpnkit.control.api import Operator
    from vpnkit.control.routes import Route, Router


def instance_router(operator: Operator, *tables: Iterable[Route], forwards: GvproxyForwards | None = None) -> Router:
    """What the control socket of an instance answers; `tables` are further ones.

    `forwards` is gvproxy's table, where guests use it too.
    """
    return with_document(
        reports(operator),
        changes(operator),
        metrics_routes(operator),
        names_routes(operator),
        gvproxy_routes(operator, forwards or GvproxyForwards(operator)),
        gvproxy_dns_routes(operator),
        port_control_routes(operator),
        *tables,
    )
