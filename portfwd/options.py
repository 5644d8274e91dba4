"""What a forward may do beyond joining two ends, as people write it: `,key=value` after the forward.

source=client    the guest sees the client's own address, where it can (else the host alias); source=alias is usual
proxy=v1|v2      say the client's address in a PROXY protocol header before its first octet
backlog=N        how many connections may wait to be accepted
idle=SECONDS     end a connection, or forget a UDP client, that was silent for so long
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

Source: TypeAlias = Literal["alias", "client"]
Proxy: TypeAlias = Literal["v1", "v2"]

BACKLOG: Final = 128
MAX_BACKLOG: Final = 65535
MAX_IDLE: Final = 7 * 86400  # seconds

_VALUES: Final = {
    "source": ("alias", "client"),
    "proxy": ("v1", "v2"),
    "backlog": (1, MAX_BACKLOG),
    "idle": (1, MAX_IDLE),
}
EXAMPLES: Final = {"source": "client", "proxy": "v2", "backlog": "512", "idle": "300"}
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


class SpecError(ValueError):
    """The text is no forward.  The message says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Options:
    """How one forward behaves."""

    source: Source = "alias"
    proxy: Proxy | None = None
    backlog: int = BACKLOG
    idle: int | None = None  # seconds; None: connections have no limit, UDP clients a default one

    def __post_init__(self) -> None:
        for name in ("backlog", "idle"):
            least, most = cast("tuple[int, int]", _VALUES[name])
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise SpecError(f"{name}={value} is out of range: {least} to {most}")

    def __str__(self) -> str:
        """With the comma before each; empty when there is nothing to say."""
        return "".join(
            f",{name}={value}" for name in _VALUES if (value := getattr(self, name)) != getattr(DEFAULT, name)
        )


def parse_options(text: str) -> Options:
    """The options of `key=value,key=value`.  Raises SpecError."""
    found: dict[str, str | int] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in _VALUES:
            raise SpecError(f"option {name!r} is not one of {', '.join(_VALUES)}")
        if not equals:
            raise SpecError(f"option {name!r} has no value; {_example(name)} has one")
        if name in found:
            raise SpecError(f"option {name!r} is there twice")
        found[name] = _value(name, value)
    return Options(**found)  # type: ignore[arg-type]


def _value(name: str, text: str) -> str | int:
    allowed = _VALUES[name]
    if isinstance(allowed[0], int):
        if not _NUMBER.fullmatch(text):
            raise SpecError(f"{name}={text!r} is not a number; {_example(name)} is right")
        return int(text)
    if text not in allowed:
        raise SpecError(f"{name}={text!r} is neither {allowed[0]} nor {allowed[1]}")
    return text


def _example(name: str) -> str:
    return f"{name}={EXAMPLES[name]}"


DEFAULT: Final = Options()
