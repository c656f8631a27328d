"""What the pages show is run: their snippets in order, each page as one program."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saqkit.cli import main
from saqkit.queue.queue import Queue

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "redis://localhost:6379"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


async def run(page: str, url: str) -> dict[str, Any]:
    """Run the snippets of a page, as a notebook would; what they have defined."""
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python"), start=1):
        code = compile(block.replace(ADDRESS, url), f"{page}:{number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.iscoroutine(result):
            await result
    return names


async def test_scheduling(redis_url: str, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    assert ADDRESS in blocks("scheduling.md", "python")[0]
    await run("scheduling.md", redis_url)
    reports = Queue.from_url(redis_url, name="reports")
    assert await reports.count("incomplete") == 2 + 1 + 2000
    assert len(re.findall(r"06:30:00\+0[12]:00", capsys.readouterr().out)) == 3
    await reports.disconnect()


def test_the_topology_and_the_window_of_the_page_are_shown_and_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    topology, window = blocks("scheduling.md", "toml")
    (command,) = blocks("scheduling.md", "sh")
    monkeypatch.chdir(tmp_path)
    Path("digest.toml").write_text(topology, encoding="utf-8")
    Path("morning.toml").write_text(window, encoding="utf-8")
    assert main(["show", "digest.toml"]) == 0
    assert len(re.findall(r"07:00:00\+0[12]:00", capsys.readouterr().out)) == 3
    assert main([*command.split()[1:], "--replications", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["workers"] for one in found] == [1, 2]
    assert all(one["users"] > 5000 for one in found)


async def test_payload_safety(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shell,) = [block for block in blocks("payload_safety.md", "sh") if block.startswith("export")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["bash", "-c", f'{shell}printf %s "$SAQKIT_PAYLOAD_KEYS"']
    keys = await asyncio.to_thread(subprocess.check_output, words, env={**os.environ, "PATH": path}, text=True)
    monkeypatch.setenv("SAQKIT_PAYLOAD_KEYS", keys)
    names = await run("payload_safety.md", redis_url)
    said = capsys.readouterr().out
    assert "{'iban': '***', 'person': '***', 'phone': '***', 'cents': 995}\n" in said
    assert 'is sealed with key "k1", which is not here' in said
    assert names["job"].kwargs["person"] == {"name": "Ada"}


async def test_moving_from_bullmq(redis_url: str) -> None:
    names = await run("moving_from_bullmq.md", redis_url)
    mail = Queue.from_url(redis_url, name="mail")
    job = await mail.job("send-7")
    assert job is not None
    assert (job.kwargs, job.retries) == ({"user": 7}, 3)
    assert inspect.iscoroutinefunction(names["send"])
    await mail.disconnect()


@pytest.mark.parametrize("page", ["scheduling.md", "payload_safety.md", "moving_from_bullmq.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([a-z_]+\.md)\)", (DOCS / page).read_text(encoding="utf-8"))
    assert page == "payload_safety.md" or links
    assert [link for link in links if not (DOCS / link).is_file()] == []
