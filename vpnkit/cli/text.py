"""Tables, sizes and durations for people.  What a guest chose (its host name, say) cannot move the cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a header in capitals, one line per row."""
    lines = [[cell.upper() for cell in header], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def printable(text: str) -> str:
    """`text` with every character that is not one to look at replaced; "-" when there is nothing."""
    return "".join(character if character.isprintable() else "?" for character in text) or "-"


def size(octets: int) -> str:
    """In the largest binary unit that leaves at least one: 1.5 KiB."""
    value = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{octets} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """The two largest units: 1h02m, 3d04h, 12s."""
    whole = int(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hour}h{minute:02}m"
    if minutes:
        return f"{minute}m{second:02}s"
    return f"{whole}s"
