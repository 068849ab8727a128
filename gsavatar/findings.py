"""Lines of a report to a person: how something stands, and one line of cure where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """How a finding stands; the value is its mark."""

    GOOD = "ok"
    NOTE = "-"
    BAD = "x"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    text: str
    cure: str = ""


def table(findings: list[Finding]) -> str:
    """The findings as text, each cure under its line."""
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{f.state.value:>2}  {f.name:<{width}}  {f.text}")
        if f.cure:
            lines.append(f"    {'':<{width}}  -> {f.cure}")
    return "\n".join(lines)
