"""The agent in a guest: tells the host what listens here.  Linux, standard library only, no privilege.

`python3 -m portfwd.auto.agent` is the same as `vpnkit agent`, for guests that have nothing else.  As root, and where
tracefs can be had, the kernel says when somebody begins to listen (`trace`); else it is looked for.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
import time
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from portfwd.auto.pace import Pace
from portfwd.auto.report import MAX_LINE, PORT, ReportError, decode_answer, encode_report
from portfwd.auto.sock_diag import drain, listeners, open_diag, watch_ends
from portfwd.auto.trace import ListenTrace, TraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECT_SECONDS: Final = 10.0
AGAIN: Final = (1.0, 2.0, 5.0, 15.0, 30.0)  # seconds between tries to connect
ROUTES: Final = "/proc/net/route"


class HostGone(Exception):
    """The connection to the host ended, or could not be made."""


def gateway() -> str:
    """The address of the default router.  Raises HostGone when there is none."""
    try:
        with open(ROUTES, encoding="ascii") as lines:
            for line in list(lines)[1:]:
                words = line.split()
                if words[1] == "00000000" and words[7] == "00000000":
                    return str(IPv4Address(struct.pack("=I", int(words[2], 16))))
    except OSError:
        pass
    raise HostGone("there is no default route, so no gateway to tell; --connect says where else")


def place(text: str) -> tuple[str, int]:
    """ADDRESS[:PORT], IPv6 in brackets.  Raises ValueError."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(PORT)
    return host.strip("[]"), int(port)


class Agent:
    """One connection to the host."""

    def __init__(self, where: tuple[str, int], say: bool = True) -> None:
        self._say = say
        self._received = b""
        try:
            self._host = socket.create_connection(where, CONNECT_SECONDS)
        except OSError as error:
            raise HostGone(f"{where[0]} port {where[1]}: {error.strerror or error}") from error
        self._host.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def run(self) -> None:
        """Report until the host ends the connection.  Raises HostGone, and OSError when nothing can be seen here."""
        with ExitStack() as closing:
            closing.enter_context(self._host)
            diag = closing.enter_context(open_diag())
            ends = closing.enter_context(open_diag())
            watch_ends(ends)
            poller = select.poll()
            poller.register(ends, select.POLLIN)
            poller.register(self._host, select.POLLIN)
            trace: ListenTrace | None = None
            try:
                trace = closing.enter_context(ListenTrace())
                poller.register(trace, select.POLLIN)
            except TraceError:
                pass
            pace = Pace(time.monotonic(), is_told=trace is not None)
            said = None
            while True:
                now = time.monotonic()
                if pace.due(now) <= now:
                    found = listeners(diag)
                    pace.looked(now, changed=found != said)
                    if found != said:
                        self._send(encode_report(found))
                        said = found
                for fd, _ in poller.poll(max(pace.due(now) - now, 0) * 1000 + 1):
                    if fd == self._host.fileno():
                        self._answers()
                        continue
                    if fd == ends.fileno():
                        drain(ends)
                    elif trace is not None:
                        trace.drain()
                    pace.hint(time.monotonic())

    def _send(self, line: bytes) -> None:
        try:
            self._host.settimeout(CONNECT_SECONDS)
            self._host.sendall(line)
        except OSError as error:
            raise HostGone(f"the host went: {error.strerror or error}") from error

    def _answers(self) -> None:
        try:
            data = self._host.recv(1 << 16)
        except OSError as error:
            raise HostGone(f"the host went: {error.strerror or error}") from error
        if not data:
            raise HostGone("the host ended the connection")
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > MAX_LINE:
            raise HostGone("what answers there is no host of an agent")
        for line in lines:
            try:
                forwards, problems = decode_answer(line)
            except ReportError as error:
                raise HostGone(f"what answers there is no host of an agent: {error}") from None
            if self._say:
                print(f"forwarded: {' '.join(forwards) or 'nothing'}", flush=True)
                for problem in problems:
                    print(f"not forwarded: {problem}", flush=True)


def run(where: tuple[str, int] | None, *, once: bool = False, quiet: bool = False) -> int:
    """Report to the host at `where`, or at the gateway, for ever; with `once` until it ends.  Returns 1 then."""
    if sys.platform != "linux":
        print("vpnkit agent: only Linux says what listens; this is no Linux", file=sys.stderr)
        return 1
    tries = 0
    last = ""
    while True:
        try:
            agent = Agent(where or (gateway(), PORT), not quiet)
            tries, last = 0, ""
            agent.run()
        except HostGone as error:
            if str(error) != last:
                print(f"vpnkit agent: {error}", file=sys.stderr, flush=True)
            last = str(error)
        except OSError as error:
            print(f"vpnkit agent: see what listens: {error.strerror}", file=sys.stderr)
            return 1
        if once:
            return 1
        time.sleep(AGAIN[min(tries, len(AGAIN) - 1)])
        tries += 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vpnkit agent", description="Tell the host what listens in this guest.")
    parser.add_argument("--connect", metavar="ADDRESS[:PORT]", type=place, help="the host (the gateway, port 62374)")
    parser.add_argument("--once", action="store_true", help="end when the host does")
    parser.add_argument("--quiet", action="store_true", help="do not print what is forwarded")
    options = parser.parse_args(argv)
    try:
        return run(options.connect, once=options.once, quiet=options.quiet)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
