"""The page of the five systems: no row is left out, what works has tests, and the page is as it is made."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from saqkit.spec.topology import load

ROOT = Path(__file__).parents[2]
ROWS = {"school-events": (0, 23), "course-platform": (1, 20), "voting": (2, 19), "shop": (3, 11), "school-erp": (4, 16)}


@pytest.fixture(scope="module")
def systems() -> ModuleType:
    spec = importlib.util.spec_from_file_location("systems_page", ROOT / "docs" / "systems.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_of_every_system_has_a_line(systems: ModuleType) -> None:
    found = {system["name"]: [row["id"] for row in system["row"]] for system in systems.rows()}
    assert found == {
        name: [f"{number:03}.{n}" for n in range(1, many + 1)] for name, (number, many) in ROWS.items()
    }  # fmt: skip
    assert all(load(name).name == name for name in found)


def test_what_works_is_shown_by_tests_and_what_does_not_says_so(systems: ModuleType) -> None:
    tests = systems.marked()
    for row in (row for system in systems.rows() for row in system["row"]):
        verdict = row.get("is", "works")
        assert verdict in systems.VERDICTS, row
        assert ("missing" in row) == (verdict == "partly"), row
        assert ("verdict" in row) == (verdict == "judged"), row
        if verdict in ("works", "partly"):
            assert tests[row["id"]], f"{row['id']} has no test"
            assert systems.places(row), f"{row['id']} is nowhere"
        if verdict in ("later", "names"):
            assert row["id"] not in tests, f"{row['id']} has tests, but is said to be {systems.VERDICTS[verdict]}"
        for place in systems.places(row):
            assert (ROOT / place).exists(), f"{row['id']}: there is no {place}"


def test_every_marked_row_exists_and_no_test_is_named_twice(systems: ModuleType) -> None:
    known = {row["id"] for system in systems.rows() for row in system["row"]}
    tests = systems.marked()
    assert set(tests) <= known
    for row, shown in tests.items():
        assert max(Counter(shown).values()) == 1, row


def test_the_page_is_as_it_is_made(systems: ModuleType) -> None:
    assert systems.PAGE.read_text(encoding="utf-8") == systems.page(), "make systems writes it anew"
