"""The table of requirements is whole, and docs/conformance.md is what it says."""

from __future__ import annotations

import pytest

from tests.conformance import table


@pytest.fixture(scope="module")
def found() -> list[table.Section]:
    sections = table.sections()
    table.attach(sections)
    return sections


@pytest.fixture(scope="module")
def rows(found: list[table.Section]) -> list[table.Requirement]:
    return [requirement for section in found for requirement in section.requirements]


def test_every_requirement_has_one_row_and_a_known_use(rows: list[table.Requirement]) -> None:
    assert len({row.identity for row in rows}) == len(rows)
    assert len({row.slug for row in rows}) == len(rows)
    assert all(row.use in table.STATUS and row.text for row in rows)


def test_all_119_numbered_requirements_of_rfc_9293_are_there(rows: list[table.Requirement]) -> None:
    numbered: dict[str, set[int]] = {}
    for row in rows:
        kind, _, number = row.identity.removeprefix("RFC9293 ").partition("-")
        if row.identity.startswith("RFC9293 ") and kind in ("MUST", "SHLD", "MAY", "REC"):
            numbered.setdefault(kind, set()).add(int(number))
    assert numbered["MUST"] == set(range(1, 70))
    assert numbered["SHLD"] == set(range(1, 32))
    assert numbered["MAY"] == set(range(1, 19))
    assert numbered["REC"] == {1}


def test_what_is_met_has_a_test(rows: list[table.Requirement]) -> None:
    assert [row.identity for row in rows if row.use == "Y" and not row.tests] == []


def test_what_is_not_met_by_us_has_a_reason(rows: list[table.Requirement]) -> None:
    assert [row.identity for row in rows if row.use != "Y" and not row.remark] == []


def test_no_test_claims_an_unknown_requirement() -> None:
    assert table.attach(table.sections()) == []


def test_the_public_table_is_the_generated_one(found: list[table.Section]) -> None:
    assert table.TABLE.read_text(encoding="utf-8") == table.render(found), "run python -m tests.conformance.table"
