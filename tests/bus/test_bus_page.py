"""docs/event_bus.md: its snippets run, and do what the page says."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from saqkit import Topology
from saqkit.testing import drain

PAGE = (Path(__file__).parents[2] / "docs" / "event_bus.md").read_text(encoding="utf-8")
ADDRESS = "redis://localhost:6379"


async def test_the_page(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 7
    assert ADDRESS in blocks[0]
    said = []
    for number, block in enumerate(blocks, start=1):
        code = compile(block.replace(ADDRESS, redis_url), f"page:{number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.iscoroutine(result):
            await result
        if number in (2, 5):
            await drain(names["queue"], names["settings"]["functions"])
        said.append(capsys.readouterr().out.splitlines())
    assert said[1][0].endswith(" True")
    assert sorted(said[1][1:]) == [
        "exam:results_published school-7 {'exam': 3, 'pupils': [1, 2]}",
        "grade:updated school-7 {'pupil': 1}",
        "grade:updated school-7 {'pupil': 2}",
    ]
    assert said[2] == ["0 deliveries dropped"]
    assert said[4][0].endswith("exam:results_published {'exam': 3, 'pupils': [1, 2]}")
    assert said[4][-1] == "1 1 False"
    assert said[5] == ["{'pupil': 5}"]
    rows = [line.split()[1:] for line in said[6] if "tell_parents" in line]
    assert rows == [["exam:results_published", "tell_parents", "0", "0", "0", "2", "0"]]
    await names["queue"].disconnect()


def test_the_topology_of_the_page(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "results.toml"
    path.write_text(block, encoding="utf-8")
    topology = Topology.from_toml(path)
    assert topology.starts(topology.entry[0]) == ("tell_parents", "keep_books")
