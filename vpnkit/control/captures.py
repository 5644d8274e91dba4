"""`/v1/captures` and its like: rules, files of packets as pcapng or pcap, and who read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pcap.errors import FilterError
from vpnkit.control.message import HttpError, Stream, json_response
from vpnkit.control.routes import Argument, Route
from vpnkit.net.capture_report import AuditReport, CaptureReport, CaptureRequest
from vpnkit.net.captures import MAX_SNAPLEN, CaptureError, CaptureExists, NoCapture

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.control.message import Request, Response, Send
    from vpnkit.net.captures import Captures

FORMATS: Final = ("pcapng", "pcap")
PCAPNG: Final = "application/x-pcapng"
PCAP: Final = "application/vnd.tcpdump.pcap"
BINARY: Final[dict[str, Any]] = {PCAPNG: bytes, PCAP: bytes}

NAME: Final = Argument("name", "the name of a capture, with or without .pcap", example="dns.pcap")
FORMAT: Final = Argument("format", "pcapng, or classic pcap", required=False, example="pcapng")
FOLLOW: Final = Argument("follow", "'true': go on with what comes", required=False, example="false")
FILTER: Final = Argument("filter", "what to follow, in tcpdump's language", example="udp port 53")
SNAPLEN: Final = Argument("snaplen", "octets of each packet", required=False, example="1500")
PRIVATE: Final = Argument("private", "'true': headers only, names hashed", required=False, example="false")
OFF: Final = "captures are off in this instance (--no-capture)"


def capture_routes(captures: Captures | None) -> list[Route]:
    """The routes; without `captures` they say that there are none."""
    handlers = CaptureHandlers(captures)
    off = {409: "captures are off"}
    return [
        Route(
            "GET",
            "/v1/captures",
            handlers.rules,
            "The captures: rings of the last packets that each rule wanted.",
            answers={200: list[CaptureReport]},
            errors=off,
        ),
        Route(
            "POST",
            "/v1/captures",
            handlers.add,
            "Begin to keep packets.",
            body=CaptureRequest,
            answers={201: CaptureReport},
            errors={
                400: "the filter, or a number, is wrong",
                409: "there is one of that name, or captures are off",
                415: "the body is not JSON",
            },
        ),
        Route(
            "GET",
            "/v1/captures/{name}",
            handlers.read,
            "The packets of a capture, as a file.",
            query=(FORMAT, FOLLOW),
            parameters=(NAME,),
            media=BINARY,
            errors={**off, 400: "a field of the query is wrong", 404: "there is no such capture"},
        ),
        Route(
            "DELETE",
            "/v1/captures/{name}",
            handlers.remove,
            "Forget a capture and its packets.",
            parameters=(NAME,),
            answers={200: CaptureReport},
            errors={**off, 404: "there is no such capture"},
        ),
        Route(
            "GET",
            "/v1/follow",
            handlers.follow,
            "The packets that a filter wants, from now on, as a file that goes on.",
            query=(FILTER, FORMAT, SNAPLEN, PRIVATE),
            media=BINARY,
            errors={**off, 400: "the filter, or another field, is wrong", 503: "too many streams are open"},
        ),
        Route(
            "GET",
            "/v1/capture-audit",
            handlers.audit,
            "Who read which captures, and changed them.",
            answers={200: list[AuditReport]},
            errors=off,
        ),
    ]


class CaptureHandlers:
    """What answers."""

    def __init__(self, captures: Captures | None) -> None:
        self._found = captures

    @property
    def _captures(self) -> Captures:
        if self._found is None:
            raise HttpError(409, "captures_off", OFF)
        return self._found

    async def rules(self, _request: Request) -> Response:
        return json_response(self._captures.reports())

    async def add(self, request: Request) -> Response:
        captures = self._captures
        wanted = request.decoded(CaptureRequest)
        report = _checked(lambda: captures.add(wanted))
        captures.audited("add", wanted.name, request.process).ended = True
        return json_response(report, 201)

    async def remove(self, request: Request) -> Response:
        captures = self._captures
        report = _checked(lambda: captures.remove(request.parameters["name"]))
        captures.audited("remove", report.name, request.process).ended = True
        return json_response(report)

    async def audit(self, _request: Request) -> Response:
        return json_response(self._captures.audit())

    async def read(self, request: Request) -> Stream:
        from vpnkit.net.capture_reading import read_ring, writer_for  # here, or every start pays for it

        captures = self._captures
        arguments = request.arguments()
        form, follow = _format(arguments), _flag(arguments, FOLLOW)
        ring = _checked(lambda: captures.ring(request.parameters["name"]))
        writer = writer_for(captures, ring, form)
        if request.method == "HEAD":
            return Stream(writer.content_type, _nothing)
        line = captures.audited("follow" if follow else "read", ring.rule.name, request.process)

        async def produce(send: Send) -> None:
            await read_ring(captures, ring, writer, send, line, follow=follow)

        return Stream(writer.content_type, produce)

    async def follow(self, request: Request) -> Stream:
        from vpnkit.net.capture_reading import read_ring, writer_for

        captures = self._captures
        arguments = request.arguments()
        form, private = _format(arguments), _flag(arguments, PRIVATE)
        snaplen = arguments.get(SNAPLEN.name, str(MAX_SNAPLEN))
        if not (snaplen.isascii() and snaplen.isdigit() and 1 <= int(snaplen[:9]) <= MAX_SNAPLEN):
            raise HttpError(400, "bad_request", f"snaplen={snaplen} is not 1 to {MAX_SNAPLEN}")
        text = arguments[FILTER.name]
        _checked(lambda: captures.predicate(text))
        if request.method == "HEAD":
            return Stream(PCAP if form == "pcap" else PCAPNG, _nothing)
        line = captures.audited("follow", text, request.process)

        async def produce(send: Send) -> None:
            with captures.filtered(text, snaplen=int(snaplen), private=private) as ring:
                await read_ring(captures, ring, writer_for(captures, ring, form), send, line, follow=True)

        return Stream(PCAP if form == "pcap" else PCAPNG, produce)


async def _nothing(send: Send) -> None:
    await send(b"")


def _checked(act: Callable[[], Any]) -> Any:
    """What `act` returns.  Raises HttpError for what is wrong."""
    try:
        return act()
    except FilterError as error:
        raise HttpError(400, "bad_filter", str(error)) from None
    except NoCapture as error:
        raise HttpError(404, "no_capture", str(error)) from None
    except CaptureExists as error:
        raise HttpError(409, "cannot_capture", str(error)) from None
    except CaptureError as error:
        raise HttpError(400, "bad_capture", str(error)) from None


def _format(arguments: dict[str, str]) -> str:
    form = arguments.get(FORMAT.name, "pcapng")
    if form not in FORMATS:
        raise HttpError(400, "bad_request", f"format={form} is none of {', '.join(FORMATS)}")
    return form


def _flag(arguments: dict[str, str], argument: Argument) -> bool:
    value = arguments.get(argument.name, "false")
    if value not in ("true", "false"):
        raise HttpError(400, "bad_request", f"{argument.name}={value} is neither true nor false")
    return value == "true"
