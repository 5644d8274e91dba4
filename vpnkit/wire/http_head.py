"""What the head of a request must look like before anybody reads it, RFC 9112.

Two programs that read one request differently are how requests are smuggled.  So what is read leniently elsewhere is
refused here: lines that end in LF alone, folded fields, two lengths, lengths beside chunks.
"""

from __future__ import annotations

import re
from typing import Final

from vpnkit.errors import WireError

MAX_HEAD: Final = 64 * 1024  # octets
MAX_FIELDS: Final = 256
END: Final = b"\r\n\r\n"

_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_FIELD: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+:")


def find_end(data: bytes | bytearray, start: int = 0) -> int:
    """The octets of the head at the front of `data`, or 0 while its end is not there; looked for from `start`.

    Raises WireError when no head begins so.
    """
    at = data.find(END, max(start - len(END), 0))
    if at < 0 and len(data) <= MAX_HEAD:
        decided = len(data) - data.endswith(b"\r")
        if _BARE.search(data, max(start - 2, 0), decided):
            raise WireError("CR or LF alone in the head of a request")
        return 0
    if at < 0 or at + len(END) > MAX_HEAD:
        raise WireError(f"head of a request of more than {MAX_HEAD} octets")
    return at + len(END)


def check(head: bytes) -> None:
    """Raises WireError when `head`, with its empty line, could be read in two ways."""
    if _BARE.search(head):
        raise WireError("CR or LF alone in the head of a request")
    request_line, *lines = head[: -len(END)].split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise WireError(f"more than {MAX_FIELDS} fields")
    lengths, codings = [], []
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise WireError("folded field")
        if not _FIELD.match(line):
            raise WireError("field without a name")
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            lengths.append(value.strip(b" \t"))
        elif name.lower() == b"transfer-encoding":
            codings.append(value.strip(b" \t").lower())
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(length) for length in lengths):
        raise WireError("Content-Length")
    if codings and (codings != [b"chunked"] or lengths or not request_line.endswith(b"HTTP/1.1")):
        raise WireError("Transfer-Encoding")
