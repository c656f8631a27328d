"""What was measured: a value per round, beside stock's of the same round, and what is promised of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Target:
    """Bounds of the median ratio, or of the median value itself (`of_value`)."""

    least: float | None = None
    most: float | None = None
    of_value: bool = False

    def text(self, unit: str) -> str:
        """The bounds, with the unit of what they bound."""
        unit = f" {unit}" if self.of_value else "×"
        if self.least is not None and self.most is not None:
            return f"{self.least:g}–{self.most:g}{unit}"
        return f"≥ {self.least:g}{unit}" if self.least is not None else f"≤ {self.most:g}{unit}"

    def met(self, number: float) -> bool:
        """Whether a number is within the bounds."""
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)


@dataclass
class Finding:
    """One row: `part` and `what` was measured of `who`, in `unit`."""

    part: str
    what: str
    who: str
    unit: str
    target: Target | None
    values: list[float] = field(default_factory=list)
    stock: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """value / stock of each round; empty if there is nothing to compare with."""
        return [value / stock for value, stock in zip(self.values, self.stock, strict=True)] if self.stock else []

    def row(self) -> dict[str, Any]:
        """The row as numbers, for JSON."""
        ratios, bound = self.ratios, None
        if self.target and self.values:
            judged = self.values if self.target.of_value else ratios
            bound = self.target.met(median(judged)) if judged else None
        return {
            "part": self.part,
            "what": self.what,
            "who": self.who,
            "unit": self.unit,
            "value": median(self.values) if self.values else None,
            "stock": median(self.stock) if self.stock else None,
            "ratio": median(ratios) if ratios else None,
            "least": min(ratios) if ratios else None,
            "greatest": max(ratios) if ratios else None,
            "target": self.target.text(self.unit) if self.target else None,
            "met": bound,
            "note": self.note,
            "values": self.values,
            "stock_values": self.stock,
        }


class Findings:
    """All rows, in the order in which they were first heard of."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Finding] = {}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._rows.values())

    def add(
        self,
        part: str,
        what: str,
        who: str,
        unit: str,
        value: float | None,
        stock: float | None = None,
        target: Target | None = None,
        note: str = "",
    ) -> None:
        """Add a round's value to a row; `stock`: what it is compared with; no value: only the note."""
        row = self._rows.setdefault((part, what, who), Finding(part, what, who, unit, target))
        row.note = note or row.note
        if value is not None:
            row.values.append(value)
            if stock is not None:
                row.stock.append(stock)

    def table(self) -> str:
        """The rows as text."""
        shown = []
        for finding in self:
            row = finding.row()
            ratio = f"{row['ratio']:.2f} ({row['least']:.2f}–{row['greatest']:.2f})" if row["ratio"] is not None else ""
            shown.append(
                {
                    "part": row["part"],
                    "what": row["what"],
                    "who": row["who"],
                    "value": "" if row["value"] is None else f"{row['value']:,.4g}" if row["value"] < 1000
                    else f"{row['value']:,.0f}",
                    "stock": "" if row["stock"] is None else f"{row['stock']:,.4g}" if row["stock"] < 1000
                    else f"{row['stock']:,.0f}",
                    "unit": row["unit"],
                    "ratio": ratio,
                    "target": row["target"] or "",
                    "met": {True: "met", False: "MISSED", None: ""}[row["met"]],
                    "note": row["note"],
                }
            )  # fmt: skip
        return pd.DataFrame(shown).to_string(index=False) if shown else "nothing was measured"
