"""The HTTP control API of the original's Go tools: `/forwards/...`, with ports as JSON objects.

A forward is known by what it leads from and to; to ask for one that is there, or to remove one that is not, is no
error.  The answers are those of `pkg/vpnkit/http`: `null` for an empty list, a JSON string for a wrong protocol, and no
newline at the end.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import msgspec

from portfwd.errors import ForwardError
from portfwd.spec import SpecError
from vpnkit.control.go import error_text
from vpnkit.control.gvproxy_forwards import errno_of
from vpnkit.control.message import HttpError, Response
from vpnkit.control.routes import Route

if TYPE_CHECKING:
    from vpnkit.control.api import Operator
    from vpnkit.control.message import Handler, Request
    from vpnkit.net.report import ForwardReport

JSON_UTF8: Final = "application/json; charset=UTF-8"
PLAIN: Final = "text/plain"
WRONG_PORT: Final = "exposed ports can only be TCP or UDP"
WRONG_PIPE: Final = "exposed pipes can only have proto=Unix"
ANY_ADDRESS: Final = "0.0.0.0"


class Port(msgspec.Struct, omit_defaults=True):
    """One forward; what is empty is left out."""

    proto: str = ""  # tcp, udp, unix
    out_ip: str = ""  # on the host
    out_port: int = 0
    out_path: str = ""
    in_ip: str = ""  # in the guest
    in_port: int = 0
    in_path: str = ""
    annotation: str = ""


class Message(msgspec.Struct):
    """The body of an error."""

    message: str


def port_control_routes(operator: Operator) -> list[Route]:
    """The routes."""
    control = PortControl(operator)
    table: list[tuple[str, str, Handler]] = [
        ("GET", "/forwards/list", control.all),
        ("GET", "/forwards/dump", control.dump),
    ]
    for path, protocols, wrong in (("port", ("tcp", "udp"), WRONG_PORT), ("pipe", ("unix",), WRONG_PIPE)):
        expose, unexpose = control.changing(protocols, wrong)
        table += [(method, f"/forwards/expose/{path}", expose) for method in ("PUT", "POST")]
        table += [(method, f"/forwards/unexpose/{path}", unexpose) for method in ("DELETE", "POST")]
    return [Route(method, path, handler) for method, path, handler in table]


class PortControl:
    """The handlers."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._made: dict[str, Port] = {}  # spec -> what was asked for, with the port that was chosen

    def changing(self, protocols: tuple[str, ...], wrong: str) -> tuple[Handler, Handler]:
        """The handlers of expose and unexpose, for these protocols; `wrong` is said about others."""

        async def expose(request: Request) -> Response:
            port = _port(request, protocols, wrong)
            return port if isinstance(port, Response) else await self._expose(port)

        async def unexpose(request: Request) -> Response:
            port = _port(request, protocols, wrong)
            return port if isinstance(port, Response) else await self._unexpose(port)

        return expose, unexpose

    async def all(self, _request: Request) -> Response:
        ports = self._ports()
        return _json(ports or None)

    async def dump(self, _request: Request) -> Response:
        """One line for each forward, for people: there is no multiplexer whose trace it could be."""
        lines = [f"{report.spec} {report.connections} open" for report in self._operator.forwards()]
        return Response(200, "".join(f"{line}\n" for line in lines).encode(), PLAIN)

    def _ports(self) -> list[Port]:
        found: dict[str, Port] = {}
        for report in self._operator.forwards():
            found.setdefault(report.spec, self._made.get(report.spec) or _listed(report))
        self._made = {spec: port for spec, port in self._made.items() if spec in found}
        return list(found.values())

    async def _expose(self, port: Port) -> Response:
        if port.out_port and any(known == port for known in self._ports()):
            return Response(200, b"", content_type="")
        try:
            spec = _spec(port)
            reports = await self._operator.expose(spec)
        except SpecError as error:
            return _json(Message(str(error)), 400)
        except ForwardError as error:
            return _json(Message(_reason(port, error)), 400)
        self._made[reports[0].spec] = msgspec.structs.replace(port, out_port=reports[0].host_port or 0)
        return Response(200, b"", content_type="")

    async def _unexpose(self, port: Port) -> Response:
        self._ports()
        spec = next((spec for spec, known in self._made.items() if known == port), None)
        try:
            await self._operator.unexpose(spec or _spec(port))
        except (ForwardError, SpecError):
            pass  # it is not there, which is what was wanted
        if spec is not None:
            self._made.pop(spec, None)
        return Response(200, b"", content_type="")


def _port(request: Request, protocols: tuple[str, ...], wrong: str) -> Port | Response:
    """The port that is spoken of, or the answer that says why it cannot be."""
    try:
        port = request.decoded(Port)
    except HttpError as error:
        return _json(Message(str(error)), error.status)
    if port.proto not in protocols:
        return _json(wrong, 400)
    return port


def _spec(port: Port) -> str:
    """The port spec of `port`.  Raises SpecError."""
    if port.proto == "unix":
        if not port.out_path:
            raise SpecError("out_path is missing")
        right = f"unix:{port.in_path}" if port.in_path else f"{_address(port.in_ip)}{port.in_port}"
        return f"unix:{port.out_path}:{right}"
    host = _address(port.out_ip or ANY_ADDRESS)
    suffix = "/udp" if port.proto == "udp" else ""
    return f"{host}{port.out_port}:{_address(port.in_ip)}{port.in_port}{suffix}"


def _address(text: str) -> str:
    """`text` and a colon, as specs have it; empty when it is."""
    if not text:
        return ""
    try:
        address = ip_address(text)
    except ValueError:
        raise SpecError(f"{text!r} is no IP address") from None
    return f"[{address}]:" if address.version == 6 else f"{address}:"


def _listed(report: ForwardReport) -> Port:
    """A forward that was made in another way."""
    return Port(
        proto=report.protocol,
        out_ip=report.host_address,
        out_port=report.host_port,
        out_path=report.host_path or "",
        in_ip=report.guest_address or "",
        in_port=report.guest_port,
        in_path=report.guest_path or "",
    )


def _reason(port: Port, error: ForwardError) -> str:
    number = errno_of(error)
    if number is None or port.proto == "unix":
        return str(error)
    host = port.out_ip or ANY_ADDRESS
    place = f"[{host}]:{port.out_port}" if ":" in host else f"{host}:{port.out_port}"
    return f"listen {port.proto} {place}: bind: {error_text(number)}"


def _json(value: object, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(value), JSON_UTF8)
