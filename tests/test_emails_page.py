"""What docs/emails.md shows is run: its topology, its snippet, and a worker that sends what it has queued."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from saqkit.app.emails.catalogue import EMAIL_TYPES
from saqkit.app.emails.queueing import Options
from saqkit.queue.building import build_queues
from saqkit.spec.topology import load

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "emails.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


async def test_the_snippet_queues_what_it_says(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("post.toml").write_text(block("toml"), encoding="utf-8")
    code = block("python").replace("redis://localhost:6379", redis_url)
    names: dict[str, Any] = {}
    await eval(compile(code, "emails.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    assert re.fullmatch(r"verification-code:[a-p]{32} True\n3 of 3\n", capsys.readouterr().out)
    (queue,) = build_queues(load("post.toml"), redis_url).values()
    assert [await queue.count(kind) for kind in ("queued", "scheduled")] == [5, 2]
    waiting = [job async for job in queue.iter_jobs()]
    assert sorted((job.function, job.priority, job.retries) for job in waiting) == [
        ("rank-update", 1, 3), ("rank-update", 2, 5), *[("referral-join", 4, 3)] * 4, ("verification-code", 3, 3),
    ]  # fmt: skip
    await queue.disconnect()


def test_the_table_has_every_type_with_what_it_is_told() -> None:
    rows = dict(re.findall(r"^\| (?:`send_\w+\(.*?\)`|none[^|]*) \| `([a-z-]+)` \| (.*?) \|", PAGE, re.MULTILINE))
    assert {name: tuple(re.findall(r"`(\w+)`", told)) for name, told in rows.items()} == {
        kind.name: kind.fields for kind in EMAIL_TYPES.values()
    }
    assert {name for name, told in rows.items() if "secret" in told} == {
        kind.name for kind in EMAIL_TYPES.values() if kind.secret
    }
    (options,) = re.findall(r"Each takes (.*?) besides", PAGE)
    assert set(re.findall(r"`(\w+)`", options)) == set(Options.__annotations__)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([a-z_]+\.md)\)", PAGE)
    assert links
    assert [link for link in links if not (DOCS / link).is_file()] == []
