"""The routes of the control API, over whatever can report: JSON, read-only, one record type per path.

A list is a bare JSON array.  GET changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from vpnkit.control.http import Takeover, json_response, serve_http
from vpnkit.control.listen import listening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vpnkit.control.http import Handler, Request, Response, Routes
    from vpnkit.net.report import FlowReport, ForwardReport, GuestReport, LeaseReport, StatusReport


Connect: TypeAlias = "Callable[[trio.SocketStream, bytes], Awaitable[None]]"


class Reporter(Protocol):
    """A running instance, as the operator sees it.  None of these may wait."""

    def status(self) -> StatusReport:
        """The instance at a glance."""
        ...

    def guests(self) -> list[GuestReport]:
        """The guests whose links are up."""
        ...

    def flows(self) -> list[FlowReport]:
        """The connections and associations that are open."""
        ...

    def leases(self) -> list[LeaseReport]:
        """The addresses that DHCP gave or promised."""
        ...

    def forwards(self) -> list[ForwardReport]:
        """The addresses on the host that lead to guests."""
        ...


def routes(reporter: Reporter, connect: Connect | None = None) -> Routes:
    """Path -> method -> handler.

    `connect` is what gvproxy's `/connect` leads to: a guest at the other end of the stream, whose first octets may be
    there already.
    """
    found: dict[str, dict[str, Handler]] = {
        "/v1/status": {"GET": _reporting(reporter.status)},
        "/v1/guests": {"GET": _reporting(reporter.guests)},
        "/v1/flows": {"GET": _reporting(reporter.flows)},
        "/v1/leases": {"GET": _reporting(reporter.leases)},
        "/v1/forwards": {"GET": _reporting(reporter.forwards)},
    }
    if connect is not None:
        found["/connect"] = dict.fromkeys(("GET", "POST"), _taking_over(connect))
    return found


async def serve_control(
    path: Path, reporter: Reporter, *, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the control API on the unix socket `path` until cancelled; the path is gone afterwards.

    Reports started when the socket accepts.  Raises ControlError when it cannot be had.
    """
    with listening(path) as listener:
        task_status.started(path)
        await serve_http(listener, routes(reporter))


def _taking_over(connect: Connect) -> Handler:
    async def handler(_request: Request) -> Takeover:
        return Takeover(connect)

    return handler


def _reporting(report: Callable[[], object]) -> Handler:
    async def handler(_request: Request) -> Response:
        return json_response(report())

    return handler
