"""The audit table of the chaos tests: a row for each run, and the hits of every fault site over all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

COLUMNS = ("run", "accepted", "done", "dead", "cancelled", "lost", "doubled", "unexpected", "recovered", "leases lost",
           "fenced")  # fmt: skip


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the tests recorded as "audit" and "hits" (also those that ran in other processes)."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    told = [pair for report in reports if getattr(report, "when", "") == "call" for pair in report.user_properties]
    rows = [{name: str(value) for name, value in row.items()} for kind, row in told if kind == "audit"]
    if not rows:
        return
    columns = list(dict.fromkeys((*COLUMNS, *(name for row in rows for name in row))))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in columns}
    terminalreporter.section("audit of the chaos tests")
    for line in [dict(zip(columns, columns, strict=True)), *rows]:
        first, *others = columns
        cells = [line.get(first, "").ljust(widths[first]), *(line.get(n, "").rjust(widths[n]) for n in others)]
        terminalreporter.write_line("  ".join(cells))
    hits: Counter[str] = Counter()
    for kind, counts in told:
        if kind == "hits":
            hits.update(counts)
    terminalreporter.write_line(
        f"faults at {len(hits)} sites: " + ", ".join(f"{s} {n}" for s, n in sorted(hits.items()))
    )
