"""`/v1/names` and `/v1/zones`: the names that are answered here, and the operator's zones, which may change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from vpnkit.control.message import HttpError, json_response
from vpnkit.control.routes import Argument, Route
from vpnkit.net.report import NameReport
from vpnkit.proto.dns_zones import Zone, ZoneError, ZoneRecord

if TYPE_CHECKING:
    from vpnkit.control.api import Operator
    from vpnkit.control.message import Request, Response

NAME: Final = Argument("name", "the zone's name, in any case, with or without its final dot", example="example.test")


class RecordBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address for one name, or for the names that a regular expression is found in."""

    ip: str
    name: str = ""  # what stands before the zone's name; * and *.name for whatever stands there
    regexp: str = ""


class ZoneBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A zone: addresses for names below its own."""

    name: str
    records: list[RecordBody] = []
    default_ip: str = ""  # of the names that no record is for; empty: they do not exist


def names_routes(operator: Operator) -> list[Route]:
    """The routes."""
    names = Names(operator)
    return [
        Route("GET", "/v1/names", names.all, "The network's own names.", answers={200: list[NameReport]}),
        Route("GET", "/v1/zones", names.zones, "The operator's zones.", answers={200: list[ZoneBody]}),
        Route(
            "POST",
            "/v1/zones",
            names.add,
            "Add a zone. Where there is one of this name, the new records go before its own, and the default address"
            " is replaced.",
            body=ZoneBody,
            answers={201: ZoneBody},
            errors={400: "the zone is wrong, or there are too many", 415: "the body is not JSON"},
        ),
        Route(
            "DELETE",
            "/v1/zones/{name}",
            names.remove,
            "Forget a zone and its records.",
            parameters=(NAME,),
            answers={200: ZoneBody},
            errors={404: "there is no such zone"},
        ),
    ]


class Names:
    """The handlers."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    async def all(self, _request: Request) -> Response:
        return json_response(self._operator.names())

    async def zones(self, _request: Request) -> Response:
        return json_response([_body(zone) for zone in self._operator.zones()])

    async def add(self, request: Request) -> Response:
        wanted = request.decoded(ZoneBody)
        records = tuple(ZoneRecord(record.name, record.ip, record.regexp) for record in wanted.records)
        try:
            self._operator.add_zone(Zone(wanted.name, records, wanted.default_ip))
        except ZoneError as error:
            raise HttpError(400, "bad_zone", str(error)) from None
        return json_response(_body(self._find(wanted.name)), 201)

    async def remove(self, request: Request) -> Response:
        zone = self._find(request.parameters[NAME.name])
        self._operator.remove_zone(zone.name)
        return json_response(_body(zone))

    def _find(self, name: str) -> Zone:
        """Raises HttpError."""
        for zone in self._operator.zones():
            if _key(zone.name) == _key(name):
                return zone
        raise HttpError(404, "no_such_zone", f"there is no zone {name!r}")


def _key(name: str) -> str:
    return name.rstrip(".").lower()


def _body(zone: Zone) -> ZoneBody:
    return ZoneBody(zone.name, [RecordBody(r.ip, r.name, r.regexp) for r in zone.records], zone.default_ip)
