"""What decides which job is next acts in the model as in the real queue: weights, turns, limits of tenants and keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measured import run as measured_run
from simulated_run import free_profile
from soundness import every_run_checked, most_at_once, no_window_exceeds

import sim
from saqkit.errors import UsageError
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Priority, RateLimit, Topology
from saqkit.spec.workload import Workload
from sim.engine.choosing_line import ChoosingLine
from sim.engine.coverage import beyond_fast
from sim.engine.jobs import WaitingLine
from sim.engine.stock import ignored

WEIGHTS = {"critical": 8.0, "high": 4.0, "normal": 2.0, "low": 1.0}
LATENCY_S = 0.04
TENANTS = ("a", "b", "c")


def system(retry: dict[str, Any] | None = None, concurrency: int = 1, **queue: Any) -> Topology:
    """Jobs of one user that are one send of constant latency: `mail`, and slower ones; of each tenant, of each level.

    An event through the topic `gate` keeps a slot busy while others come in behind it.
    """
    send = {"queue": "q", "retry": retry or {}, "per_user": {"provider": "quick", "database": "none"}}
    slow = {**send, "per_user": {"provider": "slow", "database": "none"}}
    levels = {level.name.lower(): {**send, "priority": level.name.lower()} for level in Priority}
    starts = {"gate": "gated", "gate2": "gated", **dict.fromkeys(TENANTS, "mail"), "slow": "post"}
    return Topology.parse(
        {
            "name": "choosing",
            "entry": [
                {"topic": "levels", "share": 1 / 7},
                *({"topic": name, "tenant": name, "share": 1 / 7} for name in starts),
            ],
            "topics": {"levels": {"starts": [*levels]}, **{name: {"starts": [job]} for name, job in starts.items()}},
            "queues": {"q": {"concurrency": concurrency, "lease_s": 1.0, "sweep_s": 0.5, **queue}},
            "job_types": {
                **levels,
                "mail": send,
                "post": slow,
                "gated": {**send, "per_user": {"provider": "gate", "database": "none"}},
            },
            "providers": {
                "quick": {"latency": {"kind": "constant", "mean_s": LATENCY_S}},
                "slow": {"latency": {"kind": "constant", "mean_s": 1.0}},
                "gate": {"latency": {"kind": "constant", "mean_s": 0.9}},
            },
        }
    )


def coming(*events: tuple[float, str, int], faults: tuple[dict[str, Any], ...] = ()) -> Workload:
    """(seconds, topic, users) of each event."""
    at_s, names, users = zip(*events, strict=True)
    arrivals = {"kind": "recorded", "at_s": at_s, "entries": names, "users": users}
    return Workload.parse({"arrivals": arrivals, "faults": faults})


def run(topology: Topology, workload: Workload, **how: Any) -> pd.DataFrame:
    """On a host on which nothing but the sends takes time; `soundness` looks over what comes out."""
    given = {"profile": free_profile(), "seed": 1, "same_draw": True, "replications": 1, "workers": 1, **how}
    return sim.predict(topology, workload=workload, **given).attempts.sort_values("taken_at", kind="stable")


# --- the same order as the real queue

CASES: dict[str, tuple[dict[str, Any], int, tuple[tuple[float, str, int], ...], list[str]]] = {
    "weights": ({"weights": WEIGHTS}, 1, ((0.0, "gate", 1), (0.2, "levels", 8)), []),
    "turns of tenants": (
        {"fairness": "tenants"}, 1, ((0.0, "gate", 1), (0.2, "a", 10), (0.3, "b", 4), (0.4, "c", 2)),
        [*"abcabcabab", *"aaaaaa"],
    ),
    "weights and turns": (
        {"weights": WEIGHTS, "fairness": "tenants"}, 1,
        ((0.0, "gate", 1), (0.2, "a", 6), (0.3, "levels", 3), (0.4, "b", 3)), [],
    ),
    "a rate of each tenant": (
        {"tenant_rate_limit": {"limit": 2, "period_s": 1.0}}, 1,
        ((0.0, "gate", 1), (0.2, "a", 5), (0.3, "b", 3)), [*"aabbaaba"],
    ),
    "at once of a tenant": (
        {"running_limits": [{"key": "tenant", "limit": 1}]}, 2,
        ((0.0, "gate", 1), (0.1, "gate2", 1), (0.3, "slow", 2), (0.4, "a", 6)), ["a"] * 6 + ["slow"] * 2,
    ),
    "at once of a provider and of an event": (
        {"running_limits": [{"key": "provider", "limit": 2}, {"key": "event", "limit": 1}]}, 2,
        ((0.0, "gate", 1), (0.1, "gate2", 1), (0.3, "slow", 2), (0.4, "a", 6)), ["a"] * 6 + ["slow"] * 2,
    ),
}  # fmt: skip


def completed(attempts: pd.DataFrame) -> list[str]:
    """Jobs in the order in which they ended, by the names that both engines know."""
    return [str(job).replace(":", "-") for job in attempts.sort_values("finished_at")["job"]]


@pytest.mark.parametrize("case", CASES)
async def test_jobs_end_in_the_order_of_the_real_queue(case: str) -> None:
    queue, slots, events, tenants = CASES[case]
    topology, workload = system(concurrency=slots, **queue), coming(*events)
    modelled = run(topology, workload, profile=None)
    real = (await measured_run(topology, workload=workload, seed=1)).attempts
    assert completed(modelled) == completed(real)
    assert modelled["finished_at"].max() == pytest.approx(real["finished_at"].max(), rel=0.2)
    plain = run(system(concurrency=slots), workload, profile=None)
    assert completed(plain) != completed(modelled), "it makes a difference"
    by_end = modelled.sort_values("finished_at")["tenant"]
    assert [name for name in by_end if not name.startswith("gate")] == tenants or not tenants


def spreading(**callbacks: str) -> dict[str, Any]:
    """`gated` spreads its users over batches of `mail`, which call back."""
    return {"job_types.gated": {"queue": "q", "fan_out": {"to": "mail", "batch_size": 2, "page_size": 4, **callbacks}}}


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[tuple[float, str, int], ...]]] = {
    "the queue's own rate": (
        {"queues.q.concurrency": 4, "queues.q.rate_limit": {"limit": 2, "period_s": 0.8}},
        {"queues.q.rate_limit": None},
        ((0.0, "gate", 1), (0.3, "slow", 2), (0.5, "a", 4)),
    ),
    "retries that wait": (
        {"providers.quick.temporary_share": 0.4, "job_types.mail.retry": {"backoff": "fixed", "delay_s": 0.5}},
        {"job_types.mail.retry.delay_s": 0.0},
        ((0.0, "gate", 1), (0.2, "a", 6), (1.15, "slow", 1), (1.3, "b", 3)),
    ),
    "follow-ups that pass": (
        {"job_types.mail.follow_up": [{"to": "critical"}, {"to": "low"}]},
        {"job_types.mail.follow_up": [{"to": "low"}]},
        ((0.0, "gate", 1), (0.2, "a", 3), (0.3, "b", 2)),
    ),
    "fan-in": (
        spreading(on_complete="high", on_success="low"), spreading(on_complete="low", on_success="low"),
        ((0.0, "slow", 1), (0.0, "gate", 6), (0.3, "gate2", 7), (0.4, "a", 4)),
    ),
    "fan-in of what dies": (
        {**spreading(on_complete="low", on_success="critical", on_death="normal"),
         "providers.quick.temporary_share": 0.3,
         "job_types.mail.retry": {"max_attempts": 2, "backoff": "fixed", "delay_s": 0.0}},
        spreading(on_complete="low", on_success="critical"),
        ((0.0, "slow", 1), (0.2, "gate", 8), (0.3, "gate2", 4), (0.4, "a", 4)),
    ),
}  # fmt: skip


def ended(attempts: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Attempts in the order in which they ended."""
    columns = ["job_type", "tenant", "attempt", "users", "outcome"]
    return [*attempts.sort_values("finished_at")[columns].itertuples(index=False, name=None)]


def changed(topology: Topology, changes: dict[str, Any]) -> Topology:
    """With other values at some paths."""
    described = topology.to_dict()
    for path, value in changes.items():
        *places, name = path.split(".")
        part = described
        for place in places:
            part = part[place]
        part[name] = value
    return Topology.parse(described)


@pytest.mark.parametrize("case", OTHERS)
async def test_whatever_else_moves_jobs_moves_them_alike(case: str) -> None:
    having, without, events = OTHERS[case]
    topology, workload = changed(system(), having), coming(*events)
    modelled = run(topology, workload, profile=None)
    real = (await measured_run(topology, workload=workload, seed=1)).attempts
    assert ended(modelled) == ended(real)
    assert modelled["finished_at"].max() == pytest.approx(real["finished_at"].max(), rel=0.2)
    assert ended(run(changed(topology, without), workload, profile=None)) != ended(modelled), "it matters"


@pytest.mark.parametrize("fairness", ["none", "tenants"])
def test_callbacks_of_one_type_are_as_many_jobs(fairness: str) -> None:
    """So in a line that knows jobs by their names too."""
    topology = changed(system(fairness=fairness), spreading(on_complete="low", on_success="low"))
    called = run(topology, coming((0.0, "gate", 4)))["job"].tolist()[-2:]
    assert called == ["low-gated-1-on_complete", "low-gated-1-on_success"]


async def test_what_schedules_fire_passes_what_waits_as_in_the_real_queue() -> None:
    fired = {"job_type": "high", "cron": "0 7 * * * 1", "users": 2, "tenant": "c", "name": "early"}
    topology = changed(system(), {"schedules": [fired, {**fired, "name": "late", "job_type": "low"}]})
    others = {"kind": "recorded", "at_s": [0.4, 0.6, 1.2], "entries": ["slow", "a", "b"], "users": [2, 3, 3]}
    arrivals = {"kind": "scheduled", "start": "2026-03-28T07:00:00", "duration_s": 5, "others": others}
    workload = Workload.parse({"arrivals": arrivals})
    modelled = run(topology, workload, profile=None)
    real = (await measured_run(topology, workload=workload, seed=1)).attempts
    assert ended(modelled) == ended(real)
    assert modelled.sort_values("finished_at")["job_type"].tolist() == [
        "post", "high", "high", "post", *["mail"] * 6, *["low"] * 2,
    ]  # fmt: skip


# --- what is promised


def test_shares_are_those_of_the_weights_within_a_tenth() -> None:
    frame = run(system(weights=WEIGHTS), coming((0.0, "levels", 900)))
    picks = frame["priority"].head(1500).value_counts()
    for level, weight in zip(Priority, WEIGHTS.values(), strict=True):
        assert picks[level] == pytest.approx(1500 * weight / sum(WEIGHTS.values()), rel=0.1)


@pytest.mark.parametrize("slots", [1, 5, 20])
def test_a_tenant_with_many_jobs_delays_another_to_less_than_twice_its_time_alone(slots: int) -> None:
    fair, users = system(concurrency=slots, fairness="tenants"), 100
    alone = run(fair, coming((0.0, "b", users)))["finished_at"].max()
    both = run(fair, coming((0.0, "a", 2000), (0.5, "b", users)))
    assert both.loc[both["tenant"] == "b", "finished_at"].max() - 0.5 < 2 * alone
    strict = run(system(concurrency=slots), coming((0.0, "a", 2000), (0.5, "b", users)))
    assert strict.loc[strict["tenant"] == "b", "finished_at"].max() - 0.5 > 10 * alone


def test_a_tenant_goes_on_at_once_when_its_window_opens_and_nobody_spins(takes: Callable[[], int]) -> None:
    limit = RateLimit(limit=2, period_s=3.0)
    frame = run(system(concurrency=4, tenant_rate_limit=limit.to_dict()), coming((0.0, "a", 9), (1.0, "b", 3)))
    of_a, of_b = (frame.loc[frame["tenant"] == name, "taken_at"].to_numpy() for name in "ab")
    assert of_a == pytest.approx(3.0 * (np.arange(9) // 2), abs=0.005)
    assert of_b == pytest.approx([1.0, 1.0, 4.0], abs=0.005)
    assert takes() < 60, "12 s, of which most nobody may go"
    no_window_exceeds(frame[frame["tenant"] == "a"], limit, 1e-6)


def test_who_waits_for_a_tenant_hears_of_others_and_all_hear_of_the_window() -> None:
    """With costs, two processes, and waits that end by the broker's coarse clock."""
    limited = system(concurrency=1, tenant_rate_limit={"limit": 1, "period_s": 2.0})
    frame = run(limited, coming((0.0, "a", 4), (0.5, "b", 1), (1.0, "c", 1)), workers=2, profile=None)
    frame["late_s"] = frame["taken_at"] - np.maximum(frame["ready_at"], frame.groupby("tenant").cumcount() * 2.0)
    assert frame["late_s"].max() < 0.05


def test_a_place_that_is_free_again_is_taken_at_once(takes: Callable[[], int]) -> None:
    limited = system(concurrency=4, running_limits=[{"key": "job_type", "limit": 1}])
    frame = run(limited, coming((0.0, "slow", 8), (0.5, "a", 3)), workers=2)
    slow, quick = frame[frame["job_type"] == "post"], frame[frame["job_type"] == "mail"]
    assert slow["taken_at"].to_numpy() == pytest.approx(np.arange(8.0), abs=0.005)
    assert quick["taken_at"].to_numpy() == pytest.approx(0.5 + LATENCY_S * np.arange(3), abs=0.005)
    assert most_at_once(slow) == most_at_once(quick) == 1
    assert takes() < 60


def test_what_a_dead_worker_held_runs_until_it_is_recovered_and_comes_back_to_its_place() -> None:
    limited = system(running_limits=[{"key": "tenant", "limit": 1}])
    killed = {"kind": "kill_worker", "at_s": 0.5, "worker": 0}
    frame = run(limited, coming((0.0, "slow", 3), faults=(killed,)), workers=2)
    assert frame["outcome"].tolist() == ["lost", "done", "done", "done"]
    assert frame["job"].tolist() == ["post-1-1", "post-1-1", "post-1-2", "post-1-3"]
    recovered = frame["finished_at"].iloc[0]
    assert recovered > 1.4, "its lease has to end first"
    assert frame["taken_at"].iloc[1] == pytest.approx(recovered, abs=0.005)


@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_a_retried_job_joins_the_end_of_its_level_and_frees_its_place(delay_s: float) -> None:
    retry = {"max_attempts": 2, "backoff": "fixed", "delay_s": delay_s}
    limited = system(retry, concurrency=3, running_limits=[{"key": "tenant", "limit": 1}]).to_dict()
    limited["providers"]["quick"]["temporary_share"] = 1.0
    frame = run(Topology.parse(limited), coming((0.0, "a", 3)))
    assert frame["job"].tolist() == ["mail-1-1", "mail-1-2", "mail-1-3"] * 2
    assert frame["outcome"].tolist() == ["retry"] * 3 + ["dead"] * 3


def test_a_job_that_is_due_does_not_wait_for_the_window_of_another_tenant() -> None:
    limited = system({"max_attempts": 2, "backoff": "fixed", "delay_s": 0.4}, concurrency=2,
                     tenant_rate_limit={"limit": 2, "period_s": 5.0}).to_dict()  # fmt: skip
    limited["providers"]["quick"]["temporary_share"] = 1.0
    frame = run(Topology.parse(limited), coming((0.0, "a", 3), (0.1, "b", 1)))
    assert frame["tenant"].tolist() == ["a", "a", "b", "b", "a", "a", "a", "a"]
    assert frame["taken_at"].to_numpy() == pytest.approx([0.0, 0.0, 0.1, 0.6, 5.0, 5.0, 10.0, 10.0], abs=0.005)


def test_a_fan_out_weighs_one_and_a_job_its_users() -> None:
    topology = Topology.parse(
        {
            "name": "batches",
            "entry": [{"job_type": "announce", "tenant": "a"}],
            "queues": {"q": {"tenant_rate_limit": {"limit": 21, "period_s": 1.0, "unit": "users"}}},
            "job_types": {
                "announce": {"queue": "q", "fan_out": {"to": "notify", "batch_size": 10}},
                "notify": {"queue": "q", "per_user": {"database": "none"}},
            },
        }
    )
    frame = run(topology, Workload.burst(60)).sort_values(["taken_at", "users"])
    assert frame["users"].tolist() == [0] + [10] * 6
    assert frame["taken_at"].to_numpy() == pytest.approx([0, 0, 0, 1, 1, 2, 2], abs=0.005)


def test_relieving_the_limits_makes_them_twice_as_high() -> None:
    workload, utilisation = coming((0.0, "slow", 12)), []
    for queue in (
        {"tenant_rate_limit": {"limit": 1, "period_s": 2.0}},
        {"running_limits": [{"key": "tenant", "limit": 1}]},
    ):
        found = sim.predict(
            system(concurrency=4, **queue), workload=workload, profile=free_profile(), replications=1
        ).to_dicts()[0]
        assert found["bottleneck"] == "rate_limit"
        utilisation.append(found["utilisation"]["rate_limit"])
    assert utilisation == pytest.approx([24 / 25, 1], abs=0.01)


# --- whatever is described

some_rate = st.builds(
    dict, limit=st.integers(1, 4), period_s=st.sampled_from([0.1, 0.5]), unit=st.sampled_from(["jobs", "users"])
)
some_queue = st.fixed_dictionaries(
    {
        "concurrency": st.integers(1, 4),
        "fairness": st.sampled_from(["none", "tenants"]),
        "weights": st.sampled_from([None, WEIGHTS]),
        "rate_limit": st.one_of(st.none(), st.none(), some_rate),
        "tenant_rate_limit": st.one_of(st.none(), some_rate),
        "running_limits": st.lists(
            st.builds(dict, key=st.sampled_from(["tenant", "job_type", "provider", "event"]), limit=st.integers(1, 3)),
            max_size=2, unique_by=lambda limit: str(limit["key"]),
        ),
    }
)  # fmt: skip
some_events = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from(["levels", "a", "b", "c", "slow"]), st.integers(1, 6)),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    queue=some_queue,
    events=some_events,
    workers=st.integers(1, 3),
    failing=st.sampled_from([0.0, 0.4]),
    delay_s=st.sampled_from([0.0, 0.2]),
    killed=st.booleans(),
    free=st.booleans(),
)
def test_every_run_is_sound(
    queue: dict[str, Any], events: Any, workers: int, failing: float, delay_s: float, killed: bool, free: bool
) -> None:
    retry = {"max_attempts": 3, "backoff": "fixed", "delay_s": delay_s}
    described = system(retry, **queue).to_dict()
    described["providers"]["quick"]["temporary_share"] = failing
    faults = ({"kind": "kill_worker", "at_s": 0.3, "worker": 0},) if killed else ()
    with every_run_checked() as checked:
        frame = run(Topology.parse(described), coming(*events, faults=faults), workers=workers, engine="simpy",
                    profile=free_profile() if free else None)  # fmt: skip
    assert len(checked) == 1, "it drains"
    assert frame["users_done"].sum() + frame["users_failed"].sum() == frame.drop_duplicates("job")["users"].sum()


@settings(max_examples=12, deadline=None)
@given(events=some_events, workers=st.integers(1, 3), limited=st.booleans(), failing=st.sampled_from([0.0, 0.4]))
def test_without_any_of_it_both_kinds_of_line_give_the_same_run(
    events: Any, workers: int, limited: bool, failing: float
) -> None:
    described = system({"backoff": "fixed", "delay_s": 0.2}, concurrency=2).to_dict()
    described["providers"]["quick"]["temporary_share"] = failing
    if limited:
        described["queues"]["q"]["rate_limit"] = {"limit": 3, "period_s": 0.5}
    topology, workload = Topology.parse(described), coming(*events)
    plain = run(topology, workload, workers=workers, engine="simpy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.engine.choosing_line.choosing_field", lambda _: "all of it")
        chosen = run(topology, workload, workers=workers, engine="simpy")
    columns = ["job", "attempt", "outcome", "taken_at", "finished_at"]
    order = ["job", "attempt"]
    one, other = (frame[columns].sort_values(order).reset_index(drop=True) for frame in (plain, chosen))
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=0, atol=0.005)


# --- what says so


def test_simpy_simulates_it_and_says_why() -> None:
    workload = coming((0.0, "a", 3))
    for queue, words in (
        ({"weights": WEIGHTS}, "queue q has weights"),
        ({"fairness": "tenants"}, "queue q has fairness"),
        ({"tenant_rate_limit": {"limit": 5}}, "queue q has tenant rate limit"),
        ({"running_limits": [{"key": "tenant", "limit": 5}]}, "queue q has running limits"),
    ):
        topology = system(**queue)
        assert sim.predict(topology, workload=workload, replications=1).engine == f"simpy: {words}"
        with pytest.raises(UsageError, match=f'engine="fast" cannot simulate this: {words}'):
            sim.predict(topology, workload=workload, engine="fast")
        assert any("stock SAQ has no" in note and words.split("has ")[1] in note for note in ignored(topology))
    assert beyond_fast(system(), Deployment(), workload) == ""


def test_a_key_that_the_model_does_not_have_is_refused() -> None:
    topology = system(running_limits=[{"key": "tenant", "limit": 5}, {"key": "customer", "limit": 1}])
    words = r'queues\.q\.running_limits\.1\.key: .* have tenant, job_type, provider and event, but no "customer" '
    with pytest.raises(UsageError, match=f"^choosing cannot be predicted: {words}"):
        sim.predict(topology, users=10)
    assert len(sim.predict(topology, users=10, replications=1, queue="stock").attempts)


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often jobs were asked for."""
    seen: list[float] = []
    bare = ChoosingLine.take

    def take(line: ChoosingLine, now_s: float, most: int) -> Any:
        seen.append(now_s)
        return bare(line, now_s, most)

    monkeypatch.setattr(ChoosingLine, "take", take)
    assert ChoosingLine.take is not WaitingLine.take
    return lambda: len(seen)


def test_a_batch_that_is_tried_again_weighs_all_its_users_in_both_kinds_of_line() -> None:
    times = []
    for limit in ("rate_limit", "tenant_rate_limit"):
        topology = Topology.parse(
            {
                "name": "again",
                "entry": [{"job_type": "announce"}],
                "queues": {"q": {limit: {"limit": 10, "period_s": 1.0, "unit": "users"}}},
                "job_types": {
                    "announce": {"queue": "q", "fan_out": {"to": "notify", "batch_size": 10}},
                    "notify": {
                        "queue": "q",
                        "retry": {"max_attempts": 2, "backoff": "fixed", "delay_s": 0.1},
                        "per_user": {"database": "none", "provider": "p"},
                    },
                },
                "providers": {"p": {"latency": {"kind": "constant", "mean_s": 0.001}, "temporary_share": 0.5}},
            }
        )
        frame = run(topology, Workload.burst(30))
        again = frame[frame["attempt"] == 2]
        assert len(again) == 3
        assert (again["users"] < 10).all()
        taken = frame.loc[frame["users"] > 0, "taken_at"].sort_values().to_numpy()
        assert (taken[1:] - taken[:-1] >= 0.99).all()  # one batch in a window, whoever is left of it
        times.append(taken)
    assert times[0] == pytest.approx(times[1], abs=0.02)
