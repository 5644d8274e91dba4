"""The requirements, the tests that show them, and the public table that follows: docs/conformance.md.

`python -m tests.conformance.table` writes the table.  A test shows a requirement by its name, "RFC9293 MUST-60" being
`test_rfc9293_must_60...`, or by `@pytest.mark.requirement("RFC9293 MUST-60")`, anywhere below tests/.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
DATA: Final = ("requirements_tcp.toml", "requirements_ip_nat.toml", "requirements_ipv6.toml", "requirements_dhcp.toml")
TABLE: Final = ROOT / "docs" / "conformance.md"
STATUS: Final = {"Y": "met", "D": "deviation", "H": "host's kernel", "R": "relay", "N": "not applicable"}


Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Requirement:
    identity: str  # "RFC9293 MUST-60"
    use: str  # a key of STATUS
    text: str
    remark: str  # for all but Y: the reason
    tests: list[str] = field(default_factory=list)  # "path::name", below tests/

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "_", self.identity.lower())


@dataclass
class Section:
    title: str
    requirements: list[Requirement]


def sections() -> list[Section]:
    """Everything that is required, without its tests."""
    found = []
    for name in DATA:
        for section in tomllib.loads((HERE / name).read_text(encoding="utf-8"))["section"]:
            rows = [
                Requirement(
                    identity if identity.startswith("RFC") else f"{section['rfc']} {identity}", use, text, remark
                )
                for identity, use, text, remark in section["rows"]
            ]
            found.append(Section(section["title"], rows))
    return found


def _functions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every test and its name, that of its class in front."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}::")
        elif isinstance(node, Function) and node.name.startswith("test_"):
            yield prefix + node.name, node


def _marked(function: Function) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.requirement":
            for argument in decorator.args:
                yield ast.literal_eval(argument)


def attach(found: list[Section]) -> list[str]:
    """Give each requirement its tests.  Returns what claims a requirement that does not exist."""
    by_identity = {r.identity: r for section in found for r in section.requirements}
    by_slug = sorted(((r.slug, r) for r in by_identity.values()), key=lambda pair: -len(pair[0]))
    unknown = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "test_rfc" not in source and "mark.requirement" not in source:
            continue
        where = path.relative_to(ROOT / "tests").as_posix()
        for own_name, function in _functions(ast.parse(source)):
            name = f"{where}::{own_name}"
            wanted = [by_identity.get(identity) for identity in _marked(function)]
            if re.match(r"test_rfc\d", function.name):
                rest = function.name.removeprefix("test_")
                wanted.append(next((r for slug, r in by_slug if rest == slug or rest.startswith(slug + "_")), None))
            for requirement in wanted:
                if requirement is None:
                    unknown.append(name)
                elif name not in requirement.tests:
                    requirement.tests.append(name)
    return unknown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _tests(requirement: Requirement) -> str:
    return "<br>".join(f"`{name}`" for name in requirement.tests)


def _row(requirement: Requirement) -> str:
    shown = "<br>".join(part for part in (_cell(requirement.remark), _tests(requirement)) if part)
    return f"| {requirement.identity} | {_cell(requirement.text)} | {STATUS[requirement.use]} | {shown} |"


def render(found: list[Section]) -> str:
    """docs/conformance.md."""
    everything = [r for section in found for r in section.requirements]
    counts = {use: sum(r.use == use for r in everything) for use in STATUS}
    lines = [
        "# Conformance",
        "",
        "What the RFCs require of a TCP/IP stack and of a NAT, what of it holds here, and which test shows it.",
        "This file is made by `python -m tests.conformance.table`; a test compares them.",
        "Tests are below `tests/`. What Linux answers to the same segments, and why we differ where we do, is in",
        "`tests/conformance/test_linux.py`.",
        "",
        "vpnkit ends the guest's TCP and begins anew on the host. So a requirement is one of these:",
        "",
        "| status | meaning | rows |",
        "|---|---|---|",
        f"| met | holds towards the guest, and a test shows it | {counts['Y']} |",
        f"| relay | the business of what stands above our TCP, as an application does | {counts['R']} |",
        f"| host's kernel | the host's kernel does it, on the other leg | {counts['H']} |",
        f"| not applicable | optional and not done, or without meaning here | {counts['N']} |",
        f"| deviation | deliberately otherwise | {counts['D']} |",
        "",
        "## Deviations",
        "",
        "All of them, with their reasons.",
        "",
        "| requirement | what | what is done instead, and why |",
        "|---|---|---|",
    ]
    lines += [f"| {r.identity} | {_cell(r.text)} | {_cell(r.remark)} |" for r in everything if r.use == "D"]
    for section in found:
        lines += ["", f"## {section.title}", "", "| requirement | what | status | reason, test |", "|---|---|---|---|"]
        lines += map(_row, section.requirements)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table.  1 if a test claims what is not required."""
    found = sections()
    unknown = attach(found)
    for name in unknown:
        print(f"{name}: no such requirement", file=sys.stderr)
    TABLE.write_text(render(found), encoding="utf-8")
    return bool(unknown)


if __name__ == "__main__":
    sys.exit(main())
