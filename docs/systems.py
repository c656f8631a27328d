"""Makes `systems.md` of `systems.toml` and the tests: each row of the five systems, where it is, its tests, a verdict.

`python docs/systems.py` (`make systems`) writes the page. A test shows rows by the marker `@pytest.mark.row("000.8")`.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, ROWS = ROOT / "docs" / "systems.md", ROOT / "docs" / "systems.toml"
HEAD = """# The five systems, row by row

saqkit reproduces five systems, each of which is described by its makers. Each line is one of their statements, in a few
words; where it is; the tests that show it, most of them with a real broker; and how it stands. `make systems` makes
this page from `docs/systems.toml` and from the tests, which bear the rows that they show. The makers are those who
built the five systems; a row's number begins with its system's, 000 to 004 in the order below.

The five are numbered from 000 to 004 in this order: `school-events` (000), `course-platform` (001), `voting` (002),
`shop` (003), `school-erp` (004). A row is numbered after its system: 002.9 is the ninth row of `voting`. Each system
has a page, with its story, its diagram, how to run it, and what is true of what was claimed:
[school events](school_events.md), [course platform](course_platform.md), [voting](voting.md), [shop](shop.md),
[school ERP](school_erp.md).

`saqkit show NAME` draws a system, `saqkit demo NAME` runs its story, shortened; `saqkit measure NAME`, `predict` and
`plan` take each of them. `--users N` is one event, which comes in through one of the entries; `demo`, and a workload of
several events, go through all of them by their shares.

"""
COLUMNS = "| row | what | where | tests | how it stands |\n|---|---|---|---|---|\n"
VERDICTS = {
    "works": "works",
    "partly": "works, but for: {missing}",
    "later": "not built yet",
    "claim": "a claim, not judged yet",
    "judged": "a claim: {verdict} ([notebook 06](../notebooks/06_do_the_claims_hold.ipynb))",
    "names": "names only: what stands for them",
}


def rows() -> list[dict[str, Any]]:
    """The systems of `systems.toml`, each with its rows."""
    return list(tomllib.loads(ROWS.read_text(encoding="utf-8"))["system"])


def marked() -> dict[str, list[tuple[str, str]]]:
    """(file, test) of every test that shows a row, by row."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for row in _rows_of(node):
                    found[row].append((file.relative_to(ROOT).as_posix(), node.name))
    return found


def _rows_of(test: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in test.decorator_list:
        for call in ast.walk(decorator):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.row":
                names = [str(one.value) for one in call.args if isinstance(one, ast.Constant)]
                yield from (name for name in names if re.fullmatch(r"\d{3}\.\d+", name))  # others: of the contract


def page() -> str:
    """The text of `systems.md`."""
    tests, text = marked(), HEAD
    for system in rows():
        text += f"## `{system['name']}`: {system['title']}\n\n{COLUMNS}"
        for row in system["row"]:
            shown = " · ".join(f"[{name}](../{file})" for file, name in tests.get(row["id"], []))
            where = " · ".join(f"[{place.rsplit('/', 1)[-1]}](../{place})" for place in places(row))
            verdict = VERDICTS[row.get("is", "works")].format(**row)
            text += f"| {row['id']} | {row['what']} | {where} | {shown} | {verdict} |\n"
        text += "\n"
    return text.rstrip() + "\n"


def places(row: dict[str, Any]) -> list[str]:
    """The files of a row, from the repository's root."""
    return [place.strip() for place in row.get("where", "").split(",") if place.strip()]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
