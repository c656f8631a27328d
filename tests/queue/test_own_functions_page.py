"""The lines of docs/topology.md about functions of one's own, carried out by SAQ's worker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from saq.job import Status
from saq.worker import Worker

PAGE = Path(__file__).parent.parent.parent / "docs" / "topology.md"


async def test_a_function_of_ones_own_runs_on_the_queue(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(# mine\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(found[1].replace("redis://localhost:6379", redis_url), names)
    queue = names["queue"]
    try:
        job = await queue.enqueue("send", user=7)
        await Worker(**names["settings"], burst=True, dequeue_timeout=1).start()
        await job.refresh()
        assert job.status == Status.COMPLETE
    finally:
        await queue.disconnect()
    assert capsys.readouterr().out == "to 7\n"
