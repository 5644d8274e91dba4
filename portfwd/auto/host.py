"""The host's side of an agent: his reports become forwards to his own addresses, as long as he is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from portfwd.auto.report import MAX_LINE, ReportError, decode_report, encode_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from portfwd.auto.follow import Follower
    from portfwd.auto.sock_diag import Listener

LEAST_SECONDS: Final = 0.05  # between two reports that are acted on
FIRST_SECONDS: Final = 10.0  # for the first report
ANSWER_SECONDS: Final = 10.0  # for an answer to be taken
CHUNK: Final = 16 * 1024


async def serve_agent(stream: trio.abc.Stream, follower: Follower, addresses: Callable[[], Sequence[str]]) -> None:
    """Follow the agent at the other end of `stream`, whose addresses these are, until he ends.  Raises ReportError, and
    BrokenResourceError; his forwards are unmade in any case."""
    latest: set[Listener] | None = None
    arrived = trio.Event()
    reported = False

    async def act() -> None:
        nonlocal arrived, latest
        listeners: set[Listener] = set()
        while True:
            with trio.move_on_at(follower.retry_at):
                await arrived.wait()
            arrived = trio.Event()
            if latest is not None:
                listeners, latest = latest, None
            await follower.listeners_are(listeners, addresses())
            problems = [f"{protocol} {port}: {why}" for (protocol, port), why in sorted(follower.problems.items())]
            with trio.fail_after(ANSWER_SECONDS):
                await stream.send_all(encode_answer(map(str, follower.forwarded.values()), problems))
            await trio.sleep(LEAST_SECONDS)

    async def hurry() -> None:
        await trio.sleep(FIRST_SECONDS)
        if not reported:
            nursery.cancel_scope.cancel()

    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            nursery.start_soon(hurry)
            waiting = bytearray()
            while data := await stream.receive_some(CHUNK):
                waiting += data
                *lines, rest = waiting.split(b"\n")
                waiting = bytearray(rest)
                if len(waiting) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
                    raise ReportError(f"a line of more than {MAX_LINE} octets")
                if lines:
                    latest = decode_report(bytes(lines[-1]))  # each says everything
                    reported = True
                    arrived.set()
            nursery.cancel_scope.cancel()
    except* (ReportError, trio.BrokenResourceError, trio.TooSlowError) as errors:
        found: BaseException = errors
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        assert isinstance(found, Exception)
        failure = found
    finally:
        with trio.CancelScope(shield=True):  # nothing in it waits for anybody
            await follower.close()
    if isinstance(failure, trio.TooSlowError):
        raise ReportError(f"the agent took no answer for {ANSWER_SECONDS:g} s")
    if failure is not None:
        raise failure
