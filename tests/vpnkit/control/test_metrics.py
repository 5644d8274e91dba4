"""`/metrics`, as Prometheus' own parser reads it."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.vpnkit.control.asking import asker
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.instance import instance_router
from vpnkit.control.metrics import exposition

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def families(text: str) -> dict[str, Metric]:
    found = list(text_string_to_metric_families(text))
    assert len({family.name for family in found}) == len(found), "a family is there twice"
    return {family.name: family for family in found}


def value(parsed: dict[str, Metric], name: str, **labels: str) -> float:
    (sample,) = [
        sample
        for family in parsed.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return float(sample.value)


async def test_the_answer() -> None:
    async with asker(instance_router(FixedOperator())) as ask:
        answer = await ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    parsed = families(answer.body.decode())
    assert value(parsed, "vpnkit_uptime_seconds") == 3725.5
    assert value(parsed, "vpnkit_guests") == 1
    assert value(parsed, "vpnkit_flows", protocol="tcp") == 2
    assert value(parsed, "vpnkit_bytes_total", direction="to_guest") == 98765432
    assert value(parsed, "vpnkit_frames_total", direction="to_host") == 1200
    assert value(parsed, "vpnkit_occurrences_total", what="refused_flows") == 3
    assert value(parsed, "vpnkit_guest_bytes_total", guest="1", direction="to_host") == 123456
    assert value(parsed, "vpnkit_leases", state="bound") == 1
    assert value(parsed, "vpnkit_forward_connections", spec="8080:80") == 0
    assert value(parsed, "process_cpu_seconds_total") > 0
    if sys.platform == "linux":
        assert value(parsed, "process_open_fds") > 2
        assert value(parsed, "process_resident_memory_bytes") > 1_000_000


def test_every_family_has_a_type_and_a_text_and_a_good_name() -> None:
    for name, family in families(exposition(FixedOperator())).items():
        assert family.documentation
        assert family.type in ("counter", "gauge")
        assert re.fullmatch(r"(vpnkit|process)_[a-z_]+", name)
        for sample in family.samples:
            assert sample.name == (f"{name}_total" if family.type == "counter" else name)


@pytest.mark.parametrize("text", ['quo"te', "back\\slash", "new\nline", "ünïcode", "", 'all"\\\n'])
def test_labels_survive(text: str) -> None:
    class Odd(FixedOperator):
        def status(self):
            from msgspec.structs import replace

            return replace(super().status(), name=text)

    parsed = families(exposition(Odd()))
    (sample,) = parsed["vpnkit_build_info"].samples
    assert sample.labels["instance_name"] == text
