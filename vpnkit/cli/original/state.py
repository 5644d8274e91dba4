"""What --introspection and --diagnostics show: the original's four files and its captures, and our own reports."""

from __future__ import annotations

import io
import tarfile
import time
from typing import TYPE_CHECKING, Final

import msgspec

from vpnkit.control.p9.nodes import Directory, Text
from vpnkit.net.reporting import NetworkReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vpnkit.net.network import Network
    from vpnkit.net.report import FlowReport

CAPTURE: Final = "capture/"  # the directory of the rings


class State:
    """The files of one network, by path.  Each is written when it is asked for."""

    def __init__(self, network: Network) -> None:
        self._network = network
        reporter = NetworkReporter(network)
        self._reporter = reporter
        self.files: dict[str, Callable[[], bytes]] = {
            "connections": lambda: _lines(self._connections()),
            "flows": lambda: _lines(map(_flow, self._flows("tcp"))),
            "endpoints": lambda: _lines(self._endpoints()),
            "ports": lambda: _lines(self._ports()),
            "status.json": lambda: _json(reporter.status()),
            "guests.json": lambda: _json(reporter.guests()),
            "leases.json": lambda: _json(reporter.leases()),
            "forwards.json": lambda: _json(reporter.forwards()),
        }
        captures = network.options.captures
        for name in captures.capture.rings if captures is not None else ():
            self.files[CAPTURE + name] = lambda name=name: self._ring(name)  # type: ignore[misc]

    def tree(self) -> Directory:
        """The files as a 9P tree that can be read only."""
        root = Directory("", None)
        capture = Directory(CAPTURE.rstrip("/"), root)
        root.add(capture)
        for path, render in self.files.items():
            parent, name = (capture, path.removeprefix(CAPTURE)) if path.startswith(CAPTURE) else (root, path)
            parent.add(Text(name, parent, render))
        return root

    def tar(self) -> bytes:
        """The files as a tar: regular files only, mode 0644."""
        made = io.BytesIO()
        now = int(time.time())
        with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path, render in self.files.items():
                content = render()
                entry = tarfile.TarInfo(path)
                entry.size, entry.mtime, entry.mode = len(content), now, 0o644
                archive.addfile(entry, io.BytesIO(content))
        return made.getvalue()

    def _flows(self, *protocols: str) -> list[FlowReport]:
        return [flow for flow in self._reporter.flows() if flow.protocol in protocols]

    def _connections(self) -> Iterable[str]:
        for flow in self._reporter.flows():
            more = "" if flow.protocol == "tcp" else f" {flow.protocol}:{flow.guest}-{flow.remote}"
            yield f"{flow.protocol}:{flow.host}{more}"
        for forward in self._reporter.forwards():
            yield f"{forward.protocol}:{forward.host_path or f'{forward.host_address}:{forward.host_port}'}"

    def _idle(self) -> dict[tuple[str, str], float]:
        """(the host's side, the guest's) -> seconds since one of their flows was used."""
        found: dict[tuple[str, str], float] = {}
        for flow in self._reporter.flows():
            key = (_ip(flow.remote), _ip(flow.guest))
            found[key] = min(flow.idle_seconds, found.get(key, float("inf")))
        return found

    def _endpoints(self) -> Iterable[str]:
        for (remote, guest), idle in self._idle().items():
            yield f"{remote} <-> {guest} last_active_time = {_duration(idle)}"

    def _ports(self) -> Iterable[str]:
        now = time.time()
        for (remote, _), idle in self._idle().items():
            yield f"{remote} last_active_time = {now - idle:.1f}"

    def _ring(self, name: str) -> bytes:
        from vpnkit.net.capture_reading import writer_for
        from vpnkit.net.ordinary import ordinary

        captures = self._network.options.captures
        assert captures is not None
        ring = captures.ring(name)
        writer = writer_for(captures, ring, "pcap")
        line = captures.audited("read", name, None)
        line.ended = True
        first, packets = ring.read(ring.dropped, ring.seen - ring.dropped)
        data = writer.begin() + writer.packets([frame for packet in packets for frame in ordinary(packet)])
        data += writer.end(ring.seen, first)
        line.packets, line.bytes = len(packets), len(data)
        return data


def _flow(flow: FlowReport) -> str:
    state = "closed" if flow.state.lower().startswith("clos") else "open"
    idle = _duration(flow.idle_seconds)
    return f"TCP {flow.guest} > {flow.remote} socket = {state} last_active = {idle}"


def _ip(place: str) -> str:
    return place.rpartition(":")[0].strip("[]")


def _duration(seconds: float) -> str:
    """As in 1.05s and 3m20s."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m" if hours else f"{minutes}m{rest}s"


def _lines(lines: Iterable[str]) -> bytes:
    return "\n".join(lines).encode()


def _json(report: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
