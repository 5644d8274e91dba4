"""The API, asked for whatever its own document allows and much that it does not, over TCP: no unhandled error, and
every answer as documented.  Behind it is a real network."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies
import pytest
import schemathesis
import trio
from schemathesis import checks

from vpnkit.control.serving import start_control
from vpnkit.control.token import TcpControl
from vpnkit.net.captures import Captures
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "a-token-for-the-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE = 20.0
ENDLESS = ["/v1/events", "/v1/follow"]
CHECKS = (
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)


@contextmanager
def instance() -> Iterator[str]:
    """The base URL of a running instance, in a thread of its own."""
    told: queue.Queue[str] = queue.Queue()
    ends: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def main() -> None:
        with ExitStack() as closing, trio.CancelScope() as scope:
            ends.append((trio.lowlevel.current_trio_token(), scope))
            async with trio.open_nursery() as nursery:
                network = Network(Plan(), NetworkOptions(dns=[("127.0.0.1", 9)], captures=Captures()))
                await nursery.start(network.run)
                _, place = start_control(network, nursery, closing, TcpControl("127.0.0.1", 0, TOKEN))
                told.put(f"http://{place}")

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        yield told.get(timeout=PATIENCE)
    finally:
        token, scope = ends[0]
        token.run_sync_soon(scope.cancel)
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_api_from_its_own_document(caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[str, int] = {}
    statuses: set[int] = set()
    with instance() as url, caplog.at_level(logging.WARNING):
        schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json", headers=HEADERS)
        for result in schema.exclude(path=ENDLESS).get_all_operations():
            operation = result.ok()

            @hypothesis.settings(
                max_examples=150,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                derandomize=True,
            )
            @hypothesis.given(case=_cases(operation))
            def ask(case: Any) -> None:
                response = case.call(base_url=url, headers=HEADERS, timeout=PATIENCE)
                asked[case.operation.label] = asked.get(case.operation.label, 0) + 1
                statuses.add(response.status_code)
                case.validate_response(response, checks=CHECKS)

            ask()
    assert len(asked) >= 16, asked
    assert {200, 400} <= statuses
    assert 500 not in statuses
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def _cases(operation: Any) -> Any:
    """What fits the document, and what does not."""
    modes = schemathesis.GenerationMode
    strategies = [operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE)]
    return hypothesis.strategies.one_of(strategies)
