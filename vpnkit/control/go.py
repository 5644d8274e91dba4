"""How Go's net/http and encoding/json read and write, as far as clients of gvproxy may notice.

Texts and status codes are gvproxy's; the type of what is no error is what net/http guesses from the octets.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any, Final

from vpnkit.control.message import TEXT, HttpError, Request, Response

# What Go calls these; others have the C library's text in lower case.
ERRORS: Final = {
    errno.EADDRINUSE: "address already in use",
    errno.EADDRNOTAVAIL: "cannot assign requested address",
    errno.EACCES: "permission denied",
}
KINDS: Final = {str: "string", bool: "bool", int: "number", float: "number", dict: "object", list: "array"}


class GoError(HttpError):
    """An error as http.Error says it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, "", message)

    def response(self) -> Response:
        return Response(self.status, f"{self}\n".encode(), TEXT)


def encoded(value: Any) -> Response:
    """`value` as json.Encoder writes it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Response(200, text.encode("utf-8", "replace") + b"\n", TEXT)


def done() -> Response:
    """200, and nothing to say."""
    return Response(200, b"", content_type="")


def decoded(request: Request) -> dict[str, Any]:
    """The first JSON object of the body, its keys in lower case.  Raises GoError, 400.

    What comes behind it and what Content-Type says are not looked at: json.Decoder does not, and curl's is wrong.
    """
    try:
        text = request.body.decode()
        start = len(text) - len(text.lstrip(" \t\r\n"))
        if start == len(text):
            raise GoError(400, "EOF")
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except UnicodeDecodeError:
        raise GoError(400, "invalid UTF-8 in JSON") from None
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise GoError(400, "unexpected EOF") from None
        where = _quoted(text[error.pos])
        raise GoError(400, f"invalid character {where} in JSON at {error.pos}: {error.msg}") from None
    except ValueError:  # a number of thousands of digits
        raise GoError(400, "json: cannot unmarshal number") from None
    except RecursionError:
        raise GoError(400, "exceeded max depth") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GoError(400, f"json: cannot unmarshal {KINDS[type(value)]} into Go value")
    return {key.lower(): found for key, found in value.items()}


def text_of(fields: dict[str, Any], name: str) -> str:
    """The text at `name`, empty when there is none.  Raises GoError, 400."""
    value = fields.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = KINDS[type(value)]
        raise GoError(400, f"json: cannot unmarshal {kind} into Go struct field .{name} of type string")
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # half a pair is no character


def split_host_port(text: str) -> tuple[str, str]:
    """net.SplitHostPort.  Raises ValueError with its text."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"address {text}: missing port in address" if text else "missing port in address")
    if host.startswith("["):
        if not host.endswith("]"):
            missing = "missing port in address" if "]" not in host else "too many colons in address"
            raise ValueError(f"address {text}: {missing}")
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {text}: too many colons in address")
    if any(bracket in host + port for bracket in "[]"):
        raise ValueError(f"address {text}: unexpected '[' or ']' in address")
    return host, port


def error_text(number: int) -> str:
    """What Go calls errno `number`."""
    return ERRORS.get(number) or os.strerror(number).lower()


def _quoted(character: str) -> str:
    return f"'{character}'" if character != "'" else "'\\''"
