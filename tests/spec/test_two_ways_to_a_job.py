"""An event that would make the same jobs twice is refused: their keys are equal, and a queue takes a key once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import saqkit
import sim
from saqkit.errors import DescriptionError

HEAD = """
name = "ways"
entry = [{ topic = "made" }]
queues.q = {}
providers.p = { latency = { kind = "constant", mean_s = 0.001 } }
job_types.a = { queue = "q", per_user = { provider = "p", database = "none" } }
job_types.b = { queue = "q", fan_out = { to = "a", batch_size = 3 } }
job_types.c = { queue = "q", fan_out = { to = "a", batch_size = 2 } }
"""
SERVES = 'queue = "q", per_user = { provider = "p", database = "none" }'
WAYS = {
    "directly and by a fan-out": ('topics.made.starts = ["a", "b"]', "topics.made.starts.1"),
    "by a fan-out and directly": ('topics.made.starts = ["b", "a"]', "topics.made.starts.1"),
    "by two fan-outs": ('topics.made.starts = ["b", "c"]', "topics.made.starts.1"),
    "started twice": ('topics.made.starts = ["a", "a"]', "topics.made.starts.1"),
    "followed twice": (
        'topics.made.starts = ["d"]\njob_types.d = { ' + SERVES + ', follow_up = [{ to = "a" }, { to = "a" }] }',
        "job_types.d.follow_up.1",
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_second_way_to_the_same_jobs_is_refused_by_both_engines(way: str, tmp_path: Path) -> None:
    said, key = WAYS[way]
    path = tmp_path / "ways.toml"
    path.write_text(HEAD + said)
    text = f'{path}: {key}: leads to jobs of "a" a second time: they would have the same keys and be dropped'
    with pytest.raises(DescriptionError) as refused:
        sim.predict(path, users=6)
    assert str(refused.value) == f"{text} (let it lead to a job type of its own)"
    with pytest.raises(DescriptionError) as refused:
        await saqkit.measure(path, users=6)
    assert str(refused.value).startswith(text)


def test_other_events_may_lead_to_the_same_type() -> None:
    two = HEAD.replace('[{ topic = "made" }]', '[{ topic = "made", share = 0.5 }, { job_type = "a", share = 0.5 }]')
    assert saqkit.Topology.parse(tomllib.loads(two + 'topics.made.starts = ["b"]')).name == "ways"


async def test_two_chains_that_meet_do_both_their_jobs_in_both_engines(redis_url: str) -> None:
    """A follow-up's key holds that of the job before it: those of two chains differ, and all are done."""
    meet = (
        'topics.made.starts = ["s"]\n'
        "job_types.s = { " + SERVES + ', follow_up = [{ to = "l" }, { to = "r" }] }\n'
        "job_types.l = { " + SERVES + ', follow_up = [{ to = "a" }] }\n'
        "job_types.r = { " + SERVES + ', follow_up = [{ to = "a" }] }\n'
    )
    topology = saqkit.Topology.parse(tomllib.loads(HEAD + meet))
    run = await saqkit.measure(topology, users=5, redis=redis_url)
    foreseen = sim.predict(topology, users=5, replications=1).attempts
    for rows in (run.attempts, foreseen):
        assert rows.groupby("job_type")["users_done"].sum().to_dict() == {"a": 10, "l": 5, "r": 5, "s": 5}
    assert run.attempts["job"].is_unique
