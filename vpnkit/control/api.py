"""Our own paths, `/v1/...`: what an instance says about itself, and what may be changed.

A list is a bare JSON array.  GET changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from portfwd.errors import ForwardError
from portfwd.spec import SpecError
from vpnkit.control.connection import OWNER
from vpnkit.control.events import EVENT_STREAM, JSON_LINES, EventStreams
from vpnkit.control.gradually import gradually
from vpnkit.control.http import serve_http
from vpnkit.control.listen import listening
from vpnkit.control.message import HttpError, json_response
from vpnkit.control.routes import Argument, Route
from vpnkit.net.events import Event
from vpnkit.net.report import FlowReport, ForwardReport, GuestReport, LeaseReport, StatusReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vpnkit.control.message import Handler, Request, Response
    from vpnkit.control.routes import Router
    from vpnkit.net.events import EventHub
    from vpnkit.net.report import NameReport
    from vpnkit.proto.dns_zones import Zone


SPEC: Final = Argument("spec", "a forward as `vpnkit ports` shows it", example="127.0.0.1:8080:80")
CONNECTIONS: Final = Argument(
    "connections", "'reset': those that are open end too; 'keep' is usual", required=False, example="reset"
)


class Reporter(Protocol):
    """A running instance, as the operator sees it.  None of these may wait."""

    def status(self) -> StatusReport:
        """The instance at a glance."""
        ...

    def guests(self) -> list[GuestReport]:
        """The guests whose links are up."""
        ...

    def each_flow(self) -> Iterator[FlowReport]:
        """The connections and associations that are open, one by one; others may run in between."""
        ...

    def leases(self) -> list[LeaseReport]:
        """The addresses that DHCP gave or promised."""
        ...

    def forwards(self) -> list[ForwardReport]:
        """The addresses on the host that lead to guests."""
        ...


class Operator(Reporter, Protocol):
    """The same, and what he may do."""

    @property
    def events(self) -> EventHub:
        """What happens."""
        ...

    async def expose(self, text: str) -> list[ForwardReport]:
        """Forward what the port spec `text` says, all of it or nothing.  Raises SpecError and ForwardError."""
        ...

    async def unexpose(self, text: str, *, connections: bool = False) -> list[ForwardReport]:
        """Undo it, and with `connections` reset those that are open; returns what is gone.  Raises SpecError, and
        ForwardError when there is no such forward."""
        ...

    def names(self) -> list[NameReport]:
        """The network's own names."""
        ...

    def zones(self) -> list[Zone]:
        """The zones that were added, in the order in which they are asked."""
        ...

    def add_zone(self, zone: Zone) -> None:
        """Add a zone, or records to one that is there.  Raises ZoneError."""
        ...

    def remove_zone(self, name: str) -> bool:
        """Forget a zone; whether there was one.  Raises ZoneError."""
        ...

    def addresses(self) -> dict[str, str]:
        """Who has which IPv4 address, IP to MAC, the gateway included."""
        ...

    def stations(self) -> dict[str, int]:
        """Which guest has which MAC address."""
        ...

    async def tunnel(self, stream: trio.SocketStream, received: bytes, address: str, port: int) -> None:
        """Join `stream`, of which `received` was read already, with a port of a guest, until both have finished.

        Takes over the stream, and closes it when there is no such guest or it does not answer.
        """
        ...

    async def connect(self, stream: trio.SocketStream, received: bytes) -> None:
        """Serve the guest at the other end of `stream`, whose first octets are `received`.  Takes over the stream."""
        ...


class ForwardRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to forward."""

    spec: str  # as after `vpnkit expose`: [HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/tcp|udp] and the other forms


def reports(reporter: Reporter) -> list[Route]:
    """The routes that only tell."""

    async def flows(_request: Request) -> Response:
        return json_response(await gradually(reporter.each_flow()))

    return [
        Route(
            "GET", "/v1/status", _reporting(reporter.status), "The instance at a glance.", answers={200: StatusReport}
        ),
        Route("GET", "/v1/guests", _reporting(reporter.guests), "The guests.", answers={200: list[GuestReport]}),
        Route("GET", "/v1/flows", flows, "The open connections.", answers={200: list[FlowReport]}),
        Route("GET", "/v1/leases", _reporting(reporter.leases), "The leases.", answers={200: list[LeaseReport]}),
        Route(
            "GET", "/v1/forwards", _reporting(reporter.forwards), "The forwards.", answers={200: list[ForwardReport]}
        ),
    ]


def changes(operator: Operator) -> list[Route]:
    """The routes that change something, and the one that goes on."""
    forwards = Forwards(operator)
    return [
        Route(
            "POST",
            "/v1/forwards",
            forwards.add,
            "Forward ports of the host: all that the spec says, or nothing.",
            body=ForwardRequest,
            answers={201: list[ForwardReport]},
            errors={400: "the spec is wrong", 409: "the port cannot be had", 415: "the body is not JSON"},
        ),
        Route(
            "DELETE",
            "/v1/forwards",
            forwards.remove,
            "Stop forwarding; connections that are open go on, unless they are to be reset.",
            query=(SPEC, CONNECTIONS),
            answers={200: list[ForwardReport]},
            errors={400: "the spec is wrong", 404: "there is no such forward"},
        ),
        Route(
            "GET",
            "/v1/events",
            EventStreams(operator.events).open,
            "What happens from now on: one JSON object on each line, or server-sent events.",
            media={JSON_LINES: Event, EVENT_STREAM: Event},
            errors={503: "too many streams are open"},
        ),
    ]


class Forwards:
    """What changes the forwards."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    async def add(self, request: Request) -> Response:
        wanted = request.decoded(ForwardRequest)
        try:
            return json_response(await self._operator.expose(wanted.spec), 201)
        except SpecError as error:
            raise HttpError(400, "bad_spec", str(error)) from None
        except ForwardError as error:
            raise HttpError(409, "cannot_forward", str(error)) from None

    async def remove(self, request: Request) -> Response:
        arguments = request.arguments()
        connections = arguments.get(CONNECTIONS.name, "keep")
        if connections not in ("keep", "reset"):
            raise HttpError(400, "bad_request", f"connections={connections} is neither keep nor reset")
        try:
            gone = await self._operator.unexpose(arguments[SPEC.name], connections=connections == "reset")
            return json_response(gone)
        except SpecError as error:
            raise HttpError(400, "bad_spec", str(error)) from None
        except ForwardError as error:
            raise HttpError(404, "not_forwarded", str(error)) from None


async def serve_control(
    path: Path, router: Router, *, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve `router` on the unix socket `path` until cancelled; the path is gone afterwards.

    Reports started when the socket accepts.  Raises ControlError when it cannot be had.
    """
    with listening(path) as listener:
        task_status.started(path)
        await serve_http(listener, router, OWNER)


def _reporting(report: Callable[[], object]) -> Handler:
    async def handler(_request: Request) -> Response:
        return json_response(report())

    return handler
