"""What stands before a provider acts alike in a real run and in the model: counts are equal, times are near."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from measured import lab
from measured import run as measured_run

import saqkit.app.mail
import sim
from saqkit import Queue, Run, Topology
from saqkit.spec.topology import SendRate
from sim.engine.providers import Turns

COUNTS = ["attempt", "users", "users_done", "users_failed", "outcome"]


def counted(attempts: pd.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(attempts[COUNTS].astype({"outcome": str}).itertuples(index=False, name=None))


async def both(topology: Topology, **how: Any) -> tuple[Run, pd.DataFrame]:
    """The same run twice, on the same draws; every attempt counts the same."""
    real = await measured_run(topology, seed=5, **how)
    modelled = sim.predict(topology, seed=5, same_draw=True, replications=1, **how).attempts
    assert counted(modelled) == counted(real.attempts)
    return real, modelled


def span_s(attempts: pd.DataFrame) -> float:
    return float(attempts["finished_at"].max())


async def test_the_broker_gives_turns_as_the_model_does(make_queue: Callable[..., Queue]) -> None:
    queue, modelled = make_queue("mail"), Turns(SendRate(limit=3, period_s=100.0))
    script = (Path(saqkit.app.mail.__file__).parent / "turns.lua").read_text(encoding="utf-8")
    keys, began = [queue.namespace("turns"), queue.namespace("number")], time.monotonic()
    for slack_s, many, unused in ((1.0, 2, []), (5.0, 6, []), (1.0, 2, [4, 7]), (0.5, 4, [1]), (1.0, 1, [5, 6, 8])):
        now_s = time.monotonic() - began
        before, *waits = await queue.redis.eval(script, 2, *keys, 3, 100.0, slack_s, many, *unused)  # type: ignore[misc]
        given = modelled.reserve(now_s, slack_s, many, unused)
        assert [number for number, _ in given] == list(range(int(before) + 1, int(before) + many + 1))
        assert [float(wait) for wait in waits] == pytest.approx([wait for _, wait in given], abs=10)
    assert max(wait for _, wait in given) > 100


async def test_a_rate_over_two_processes() -> None:
    topology = lab(
        providers__email__latency={"kind": "constant", "mean_s": 0.01}, providers__email__rate={"limit": 20},
        providers__email__temporary_share=0.2,
        job_types__notify__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 0},
    )  # fmt: skip
    real, modelled = await both(topology, users=60, batch_size=10, workers=2, concurrency=2)
    assert set(real.attempts["worker"]) == {"worker-0", "worker-1"}
    waves = (sum(real.attempts["users"]) - 1) // 20
    assert waves >= 2
    for attempts in (real.attempts, modelled):
        assert waves <= span_s(attempts) < waves + 3
    assert span_s(modelled) == pytest.approx(span_s(real.attempts), rel=0.5)
    provider = real.steps[real.steps["step"] == "provider"]
    assert len(provider) == sum(real.attempts["users"])
    assert provider["took_s"].median() < 0.1, "what a send waits for its turn is no part of the provider's time"
    assert provider["waited_s"].max() > 0.5


async def test_connections_of_each_process() -> None:
    topology = lab(providers__email__latency={"kind": "constant", "mean_s": 0.05}, providers__email__connections=1)
    real, modelled = await both(topology, users=60, batch_size=5, workers=2, concurrency=6)
    for attempts in (real.attempts, modelled):
        one_by_one_s = attempts.groupby("worker")["users_done"].sum().max() * 0.05
        assert one_by_one_s <= span_s(attempts) < one_by_one_s + 3
    assert span_s(modelled) == pytest.approx(span_s(real.attempts), rel=0.5)


async def test_a_circuit_breaker_sends_as_seldom() -> None:
    latency_s = 0.05
    topology = lab(
        providers__email__latency={"kind": "constant", "mean_s": latency_s}, providers__email__temporary_share=1.0,
        providers__email__breaker={"failures": 3, "reset_s": 0.5},
        job_types__notify__retry={"max_attempts": 3, "backoff": "fixed", "delay_s": 1.5},
    )  # fmt: skip
    real, modelled = await both(topology, users=60, batch_size=20, workers=1, concurrency=1)
    sent = int((real.steps["step"] == "provider").sum())
    assert sent == 3 + 1 + 1, "then it opens, and each time that the jobs come back one is tried"
    assert round(modelled["provider_s"].sum() / latency_s) == sent
    for attempts in (real.attempts, modelled):
        assert sent * latency_s <= attempts["provider_s"].sum() < sent * latency_s + 1
