"""What a handler is given and what it may answer: the requests and answers of the control API, apart from the wire."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import trio

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
MAX_ARGUMENTS: Final = 64  # of one query

Kind = TypeVar("Kind")


class Failure(msgspec.Struct, frozen=True):
    """What went wrong; `code` is for programs, and part of the interface."""

    code: str
    message: str


class FailureReport(msgspec.Struct, frozen=True):
    """The body of every answer that is an error."""

    error: Failure


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body complete."""

    method: str
    path: str  # as it was sent, not percent-decoded
    query: str
    headers: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes = b""
    peer: str = ""  # the address of the guest that asks; empty for the operator
    parameters: Mapping[str, str] = field(default_factory=dict)  # of the path, percent-decoded
    process: tuple[int, int] | None = None  # (pid, uid) that asks, where the system tells

    def header(self, name: str) -> str | None:
        """The first field of that (lower case) name."""
        return next((value for field, value in self.headers if field == name), None)

    def arguments(self) -> dict[str, str]:
        """The query's fields, decoded; of equal names the last one counts.  Raises HttpError."""
        if not self.query:
            return {}
        try:
            pairs = parse_qsl(
                self.query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_ARGUMENTS
            )
        except ValueError as error:
            raise HttpError(400, "bad_request", f"the query {self.query!r} cannot be read: {error}") from None
        return dict(pairs)

    def media_type(self) -> str:
        """The content type without its parameters, in lower case; empty when there is none."""
        return (self.header("content-type") or "").partition(";")[0].strip().lower()

    def decoded(self, kind: type[Kind]) -> Kind:
        """The JSON body as a `kind`.  Raises HttpError for what is no JSON, is not said to be, or does not fit."""
        if self.media_type() != JSON:
            raise HttpError(415, "unsupported_media_type", f"the body has to be {JSON}, and Content-Type has to say so")
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HttpError(400, "bad_request", f"the body does not fit: {error}") from None
        except RecursionError:
            raise HttpError(400, "bad_request", "the body does not fit: it is too deep") from None


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, its body complete."""

    status: int
    body: bytes
    content_type: str = JSON  # empty: none is told
    headers: tuple[tuple[str, str], ...] = ()


Send: TypeAlias = "Callable[[bytes], Awaitable[None]]"


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that goes on, with status 200: `produce` sends its pieces and returns at the end.

    The header goes before the first piece, which may be empty: whatever happens once the client has seen it is to be
    in the stream.  `produce` is cancelled when the client goes away, and its `send` raises trio.BrokenResourceError
    when the client takes nothing for too long.  The connection ends with it.
    """

    content_type: str
    produce: Callable[[Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Takeover:
    """The end of HTTP on a connection: nothing is answered, and `take` has the stream from then on, with the octets
    that came right behind the request."""

    take: Callable[[trio.SocketStream, bytes], Awaitable[None]]


Answer: TypeAlias = "Response | Stream | Takeover"
Handler: TypeAlias = "Callable[[Request], Awaitable[Answer]]"


class HttpError(Exception):
    """The request is answered with an error.  `close`: what follows it on the connection cannot be understood."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: tuple[tuple[str, str], ...] = (),
        *,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers
        self.close = close

    def response(self) -> Response:
        """The error as the answer that reports it."""
        return json_response(FailureReport(Failure(self.code, str(self))), self.status, self.headers)


def json_response(value: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """`value` as JSON on one line."""
    return Response(status, msgspec.json.encode(value) + b"\n", headers=headers)
