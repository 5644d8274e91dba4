"""`/metrics`: the same numbers as elsewhere, in Prometheus' text format 0.0.4.

Names end in their unit; what only grows ends in `_total`.  A label may have as many values as the table behind it has
places, and that is bounded.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from vpnkit.control.message import Response
from vpnkit.control.routes import Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vpnkit.control.api import Operator
    from vpnkit.control.message import Request
    from vpnkit.net.report import GuestReport, StatusReport

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PATH: Final = "/metrics"

Sample = tuple[dict[str, str], float]


def metrics_routes(operator: Operator) -> list[Route]:
    """The route."""

    async def handler(_request: Request) -> Response:
        return Response(200, exposition(operator).encode(), CONTENT_TYPE)

    return [Route("GET", PATH, handler, "Everything that is counted, for Prometheus.", media={CONTENT_TYPE: None})]


def exposition(operator: Operator) -> str:
    """The whole text."""
    status = operator.status()
    families = [
        *_instance(status),
        *_guests(operator.guests()),
        *_tables(operator),
        _family(
            "vpnkit_events", "counter", "What happened, as /v1/events tells it.", [({}, operator.events.published)]
        ),
        _family(
            "vpnkit_events_lost", "counter", "Events that listeners were too slow for.", [({}, operator.events.lost)]
        ),
        *_process(),
    ]
    return "".join(families)


def _instance(status: StatusReport) -> Iterator[str]:
    about = {"version": status.version, "instance_name": status.name}
    yield _family("vpnkit_build_info", "gauge", "Always 1; its labels say which instance this is.", [(about, 1)])
    yield _family("vpnkit_uptime_seconds", "gauge", "How long the network runs.", [({}, status.uptime_seconds)])
    yield _family("vpnkit_guests", "gauge", "Guests whose links are up.", [({}, status.guests)])
    flows = [({"protocol": protocol}, count) for protocol, count in status.flows.items()]
    yield _family("vpnkit_flows", "gauge", "Open connections and associations.", flows)
    frames = [({"direction": "to_host"}, status.frames_to_host), ({"direction": "to_guest"}, status.frames_to_guest)]
    yield _family("vpnkit_frames", "counter", "Frames of all guests since the start.", frames)
    octets = [({"direction": "to_host"}, status.bytes_to_host), ({"direction": "to_guest"}, status.bytes_to_guest)]
    yield _family("vpnkit_bytes", "counter", "Octets of these frames.", octets)
    counters = [({"what": what}, count) for what, count in status.counters.items()]
    yield _family("vpnkit_occurrences", "counter", "Drops, refusals, evictions and contained failures.", counters)
    yield _family("vpnkit_warnings", "gauge", "Warnings of `vpnkit status`.", [({}, len(status.warnings))])


def _guests(guests: Iterable[GuestReport]) -> Iterator[str]:
    frames: list[Sample] = []
    octets: list[Sample] = []
    for guest in guests:
        for direction in ("to_host", "to_guest"):
            labels = {"guest": str(guest.id), "mac": guest.mac or "", "link": guest.link, "direction": direction}
            frames.append((labels, getattr(guest, f"frames_{direction}")))
            octets.append((labels, getattr(guest, f"bytes_{direction}")))
    yield _family("vpnkit_guest_frames", "counter", "Frames of one guest.", frames)
    yield _family("vpnkit_guest_bytes", "counter", "Octets of these frames.", octets)


def _tables(operator: Operator) -> Iterator[str]:
    leases = Counter(lease.state for lease in operator.leases())
    yield _family("vpnkit_leases", "gauge", "Leases.", [({"state": state}, count) for state, count in leases.items()])
    forwards = list({forward.spec: forward for forward in operator.forwards()}.values())
    yield _family("vpnkit_forwards", "gauge", "Forwards.", [({}, len(forwards))])
    for name, kind, text in (
        ("connections", "gauge", "Connections of one forward that are open."),
        ("accepted", "counter", "Connections of one forward, or clients over UDP, so far."),
        ("failures", "counter", "Those of them that could not be delivered."),
        ("refused", "counter", "Those that were too many."),
    ):
        samples = [({"spec": forward.spec}, getattr(forward, name)) for forward in forwards]
        yield _family(f"vpnkit_forward_{name}", kind, text, samples)


def _process() -> Iterator[str]:
    """What Prometheus' own libraries say of a process, by their names."""
    yield _family("process_cpu_seconds", "counter", "User and system time.", [({}, time.process_time())])
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE")
        yield _family("process_resident_memory_bytes", "gauge", "Resident memory.", [({}, resident)])
        descriptors = len(os.listdir("/proc/self/fd")) - 1
        yield _family("process_open_fds", "gauge", "Open descriptors.", [({}, descriptors)])


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    full = f"{name}_total" if kind == "counter" else name
    lines = [f"# HELP {full} {_escaped(text, quotes=False)}", f"# TYPE {full} {kind}"]
    lines += [f"{full}{_labels(labels)} {_number(value)}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
