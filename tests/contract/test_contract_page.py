"""The page of the contract names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")


def test_every_clause_has_its_section_and_names_tests_that_are_there() -> None:
    clauses = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:15]
    assert [clause.split()[0] for clause in clauses] == [f"C{n}" for n in range(1, 15)]
    for clause in clauses:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", clause)
        assert named, clause.split("\n")[0]
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


def test_every_test_of_this_folder_is_on_the_page() -> None:
    for file in Path(__file__).parent.glob("test_*.py"):
        if file != Path(__file__):
            for test in re.findall(r"^async def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE):
                assert f"{file.relative_to(ROOT)}::{test}`" in PAGE
