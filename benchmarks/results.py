"""What a run found, as it is kept in JSON."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1


@dataclass(frozen=True)
class Metric:
    """One number of a row: what it is called within it, its unit, and which way is better."""

    key: str
    unit: str
    higher_is_better: bool
    section: str
    label: str = ""


@dataclass
class Sample:
    """One contender's turn at one row in one round."""

    round: int
    values: dict[str, float]
    error: str | None = None


@dataclass
class RowResult:
    id: str
    label: str
    bar: str
    metrics: list[Metric]
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def values(self, metric: str, contender: str) -> list[float]:
        return [one.values[metric] for one in self.samples.get(contender, ()) if metric in one.values]

    def errors(self, contender: str) -> list[str]:
        return [one.error for one in self.samples.get(contender, ()) if one.error]


@dataclass
class Results:
    machine: dict[str, str]
    command: str
    contenders: list[str]
    settings: dict[str, Any]
    rows: list[RowResult] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False

    def row(self, row_id: str) -> RowResult | None:
        return next((one for one in self.rows if one.id == row_id), None)

    def median(self, row_id: str, metric: str, contender: str) -> float | None:
        row = self.row(row_id)
        values = row.values(metric, contender) if row else []
        return statistics.median(values) if values else None

    def ratio(self, row_id: str, metric: str, contender: str, peer: str) -> float | None:
        """`contender`'s median over `peer`'s."""
        ours, theirs = self.median(row_id, metric, contender), self.median(row_id, metric, peer)
        return ours / theirs if ours is not None and theirs else None


def save(results: Results, path: Path) -> None:
    path.write_text(json.dumps({"format": FORMAT, **asdict(results)}, indent=1) + "\n")


def load(path: Path) -> Results:
    data = json.loads(path.read_text())
    if data.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a result of this version of benchmarks")
    data["rows"] = [
        RowResult(
            id=row["id"],
            label=row["label"],
            bar=row["bar"],
            metrics=[Metric(**metric) for metric in row["metrics"]],
            samples={name: [Sample(**one) for one in samples] for name, samples in row["samples"].items()},
        )
        for row in data["rows"]
    ]
    return Results(**data)
