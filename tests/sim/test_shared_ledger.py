"""An event that reaches the same users by two jobs of one channel: the ledger serves each of them once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest
from measured import run as measured_run
from simulated_run import free_profile

import sim
from saqkit.errors import UsageError
from saqkit.spec.topology import Topology
from sim.engine.ledger import shared_channels, ways

USERS = 20
WRITES = {"database": "ledger", "provider": "email"}


def system(second_channel: str = "email", **email: Any) -> Topology:
    """Each user gets a message, and when the batch is done a second one from another provider."""
    quick = {"latency": {"kind": "constant", "mean_s": 0.005}}
    return Topology.parse(
        {
            "name": "twice",
            "entry": [{"job_type": "announce"}],
            "queues": {"q": {"concurrency": 2}},
            "job_types": {
                "announce": {"queue": "q", "fan_out": {"to": "notify", "batch_size": 5}},
                "notify": {"queue": "q", "per_user": WRITES, "follow_up": [{"to": "remind"}]},
                "remind": {"queue": "q", "per_user": {"database": "ledger", "provider": "other"}},
            },
            "providers": {"email": {**quick, **email}, "other": {**quick, "channel": second_channel}},
        }
    )


def one_after_the_other() -> Topology:
    """A topic starts two jobs for each user; one slot does all of the first kind first."""
    send = {"queue": "q", "per_user": WRITES}
    return Topology.parse(
        {
            "name": "topic",
            "entry": [{"topic": "made"}],
            "topics": {"made": {"starts": ["first", "second"]}},
            "queues": {"q": {"concurrency": 1}},
            "job_types": {
                "first": {**send, "priority": "high"},
                "second": {**send, "priority": "low"},
            },
            "providers": {"email": {"latency": {"kind": "constant", "mean_s": 0.002}, "permanent_share": 0.2}},
        }
    )


def two_ways() -> Topology:
    """Two job types are followed by the same third one."""
    send = {"queue": "q", "per_user": {"provider": "email", "database": "none"}}
    return Topology.parse(
        {
            "name": "ways",
            "entry": [{"topic": "made"}],
            "topics": {"made": {"starts": ["one", "two"]}},
            "queues": {"q": {"concurrency": 2}},
            "job_types": {
                **{name: {**send, "follow_up": [{"to": "after"}]} for name in ("one", "two")},
                "after": {**send, "follow_up": [{"to": "last"}]},
                "last": send,
            },
            "providers": {"email": {"latency": {"kind": "constant", "mean_s": 0.002}}},
        }
    )


def predicted(topology: Topology, **how: Any) -> pd.DataFrame:
    return sim.predict(topology, users=USERS, seed=1, same_draw=True, replications=1, **how).attempts


def counted(rows: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """Of each job type: attempts, users, and how many of them were done and failed."""
    sums = rows.groupby("job_type").agg(
        {"attempt": "size", "users": "sum", "users_done": "sum", "users_failed": "sum"}
    )  # fmt: skip
    return {str(row[0]): tuple(int(value) for value in row[1:]) for row in sums.itertuples()}


@pytest.mark.parametrize(
    ("topology", "reached"),
    [
        (system(), {"notify": (4, 20, 20, 0), "remind": (4, 0, 0, 0)}),
        (system("sms"), {"notify": (4, 20, 20, 0), "remind": (4, 20, 20, 0)}),
        (one_after_the_other(), None),
        (two_ways(), {"one": (20, 20, 20, 0), "after": (40, 40, 40, 0), "last": (40, 40, 40, 0)}),
    ],
    ids=["one channel", "two channels", "a topic", "two ways"],
)
async def test_users_are_counted_as_the_real_ledger_counts_them(
    topology: Topology, reached: dict[str, tuple[int, ...]] | None
) -> None:
    modelled = predicted(topology)
    real = (await measured_run(topology, users=USERS, seed=1)).attempts
    assert counted(modelled) == counted(real)
    assert {str(job).replace(":", "-") for job in real["job"]} >= {
        str(job) for job, kind in zip(modelled["job"], modelled["job_type"], strict=True) if kind in ("after", "last")
    }
    if reached is not None:
        assert counted(modelled).items() >= reached.items()
    else:
        (_, users, done, failed), second = counted(modelled)["first"], counted(modelled)["second"]
        assert (users, done + failed) == (20, 20)
        assert failed > 0, "somebody refuses for good, and is not asked again either"
        assert second == (20, 0, 0, 0)


def test_jobs_of_two_ways_are_told_apart() -> None:
    rows = predicted(two_ways())
    assert rows["job"].is_unique
    assert len(rows) == 6 * USERS


def test_who_is_served_at_the_same_time_is_served_twice() -> None:
    """Neither job finds a result of the other when it begins; that is so in the application, too."""
    send = {"queue": "q", "per_user": WRITES}
    given = one_after_the_other().to_dict()
    given["topics"]["made"]["starts"] = ["first", "second"]
    given["queues"]["q"]["concurrency"] = 2 * USERS
    given["job_types"] = {"first": send, "second": send}
    given["providers"]["email"]["latency"]["mean_s"] = 1.0
    rows = predicted(Topology.parse(given), profile=free_profile())
    assert counted(rows)["second"][1] == USERS


def test_a_dead_job_leaves_nobody_to_the_next() -> None:
    given = one_after_the_other().to_dict()
    given["providers"]["email"]["latency"]["mean_s"] = 0.05
    given["job_types"]["first"]["timeout_s"] = 0.04  # shorter than a send
    given["job_types"]["first"]["retry"] = {"max_attempts": 1}
    found = counted(predicted(Topology.parse(given)))
    assert found["first"] == (20, 20, 0, 20)
    assert found["second"] == (20, 0, 0, 0)


def test_a_retry_serves_those_whom_nobody_has_served_meanwhile() -> None:
    given = one_after_the_other().to_dict()
    given["providers"]["email"]["latency"]["mean_s"] = 0.05
    given["job_types"]["first"]["timeout_s"] = 0.04
    given["job_types"]["first"]["retry"] = {"max_attempts": 2, "backoff": "fixed", "delay_s": 30.0}
    found = counted(predicted(Topology.parse(given)))
    assert found["second"][1] == 20
    assert found["first"][0] == 40  # attempts
    assert found["first"][1] == 20  # users of the first attempts; the second ones find nobody


def test_the_fast_engine_leaves_it_to_simpy_and_says_so() -> None:
    assert shared_channels(system()) == {"email": ["notify", "remind"]}
    assert shared_channels(system("sms")) == {}
    assert ways(two_ways()) == Counter(one=1, two=1, after=2, last=2)
    reason = "jobs of notify and remind share the ledger's rows of channel email"
    assert sim.predict(system(), users=5, replications=1).engine == f"simpy: {reason}"
    assert sim.predict(system("sms"), users=5, replications=1).engine == "fast"
    with pytest.raises(UsageError, match="2 ways lead to jobs of after"):
        sim.predict(two_ways(), users=5, replications=1, engine="fast")
    rows = sim.predict(system(), users=USERS, replications=1, queue="stock").attempts
    assert counted(rows)["remind"][1:] == (0, 0, 0)
