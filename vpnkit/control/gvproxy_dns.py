"""gvproxy's zones: `/services/dns/all` and `/services/dns/add`.

The network's own names are the zones that gvproxy begins with.  What is added to one of these stands behind them, for
they come first: nobody takes the gateway's name away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vpnkit.control.go import KINDS, GoError, decoded, done, encoded, text_of
from vpnkit.control.routes import ANY, Route
from vpnkit.proto.dns_zones import Zone, ZoneError, ZoneRecord

if TYPE_CHECKING:
    from vpnkit.control.api import Operator
    from vpnkit.control.message import Request, Response


def gvproxy_dns_routes(operator: Operator) -> list[Route]:
    """The routes."""

    async def everything(_request: Request) -> Response:
        return encoded([_listed(zone) for zone in _zones(operator)])

    async def add(request: Request) -> Response:
        if request.method != "POST":
            raise GoError(400, "post only")
        zone = _zone(decoded(request))
        try:
            operator.add_zone(zone)
        except ZoneError as error:
            raise GoError(400, str(error)) from None
        return done()

    return [Route(ANY, "/services/dns/all", everything), Route(ANY, "/services/dns/add", add)]


def _zones(operator: Operator) -> list[Zone]:
    """The network's own names as zones, with what was added to them, and the other zones."""
    own: dict[str, list[ZoneRecord]] = {}
    for report in operator.names():
        label, _, parent = report.name.partition(".")
        own.setdefault(f"{parent}.", []).extend(ZoneRecord(label, ip) for ip in report.addresses)
    added = {zone.name.rstrip(".").lower(): zone for zone in operator.zones()}
    found = []
    for name, records in own.items():
        more = added.pop(name.rstrip(".").lower(), Zone(name))
        found.append(Zone(name, (*records, *more.records), more.default_ip))
    return [*found, *added.values()]


def _listed(zone: Zone) -> dict[str, Any]:
    records = [
        {"Name": record.name, "IP": record.ip, **({"Regexp": record.regexp} if record.regexp else {})}
        for record in zone.records
    ]
    return {"Name": zone.name, "Records": records or None, "DefaultIP": zone.default_ip}


def _zone(fields: dict[str, Any]) -> Zone:
    """Raises GoError."""
    records = fields.get("records")
    if records is None:
        records = []
    if not isinstance(records, list):
        raise GoError(400, f"json: cannot unmarshal {KINDS[type(records)]} into Go struct field .Records")
    return Zone(text_of(fields, "Name"), tuple(map(_record, records)), text_of(fields, "DefaultIP"))


def _record(value: Any) -> ZoneRecord:
    if not isinstance(value, dict):
        raise GoError(400, f"json: cannot unmarshal {KINDS.get(type(value), 'null')} into Go struct field .Records")
    fields = {key.lower(): found for key, found in value.items()}
    return ZoneRecord(text_of(fields, "Name"), text_of(fields, "IP"), text_of(fields, "Regexp"))
