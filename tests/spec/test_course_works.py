"""What a description of the course platform's work may not say."""

from __future__ import annotations

from typing import Any

import pytest

from saqkit.errors import DescriptionError
from saqkit.spec.topology import Topology


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"work": "reminders"}, "reminders.* finds out who is due"),
        ({"work": "enrolment"}, "enrolment.* needs where it is written down"),
        ({"work": "sync-profiles"}, "sync-profiles.* needs how the other system is asked"),
        ({"work": "clean-codes", "per_user": {"database": "ledger"}}, "per_user means nothing beside .*clean-codes"),
        ({"work": "report", "send_concurrency": 2}, "send_concurrency means nothing beside .*report"),
        ({"work": "report", "fan_out": {"to": "b", "batch_size": 2}}, "work means nothing beside fan_out"),
    ],
)
def test_work_that_cannot_be_done_so_is_refused(job: dict[str, Any], words: str) -> None:
    data: dict[str, Any] = {
        "name": "t", "entry": [{"job_type": "a"}], "queues": {"q": {}},
        "job_types": {"a": {"queue": "q", **job}, "b": {"queue": "q", "per_user": {"database": "ledger"}}},
    }  # fmt: skip
    with pytest.raises(DescriptionError, match=words):
        Topology.parse(data)
