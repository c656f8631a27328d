"""The fast engine returns the attempts of the SimPy model, equal to the last bit, whatever is described."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saqkit.errors import UsageError
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology, load
from saqkit.spec.trace import measures
from saqkit.spec.workload import Workload
from sim import predict
from sim.engine.costs import PARTS, Costs
from sim.engine.coverage import beyond_fast
from sim.engine.fast.compiled import HELD, call, deferred_signals
from sim.engine.fast.engine import run_fast
from sim.engine.model import Model
from sim.fit.profile import Profile

QUEUES, PROVIDERS, BATCHES = ("alpha", "beta", "gamma"), ("email", "sms"), ("notify", "remind", "follow", "sync")
# Round times make ties, of which the order has to be the model's.
TIMES_S = st.sampled_from([0.0, 0.001, 0.005, 0.01, 0.0123, 0.05, 0.2])
COSTS_S = st.sampled_from([0.0, 0.0, 0.0001, 0.00037, 0.001, 0.005])
LATENCIES = st.one_of(
    st.builds(lambda s: {"kind": "constant", "mean_s": s}, TIMES_S),
    st.builds(lambda s, cv: {"kind": "lognormal", "mean_s": s, "cv": cv}, st.floats(0.001, 0.1), st.floats(0.1, 3)),
    st.builds(lambda s: {"kind": "exponential", "mean_s": s}, st.floats(0.001, 0.1)),
    st.builds(lambda s, cv: {"kind": "gamma", "mean_s": s, "cv": cv}, st.floats(0.001, 0.1), st.floats(0.3, 2)),
    st.builds(lambda v: {"kind": "empirical", "values_s": v}, st.lists(st.floats(0, 0.2), min_size=1, max_size=5)),
)
SHARES = st.sampled_from([0.0, 0.0, 0.05, 0.3, 0.7, 1.0])


@st.composite
def retries(draw: st.DrawFn) -> dict[str, Any]:
    backoff = draw(st.sampled_from(["fixed", "exponential", "list"]))
    found: dict[str, Any] = {
        "max_attempts": draw(st.integers(1, 5)),
        "backoff": backoff,
        "delay_s": draw(st.sampled_from([0.0, 0.05, 0.2, 1.0, 2.5])),
        "factor": draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])),
        "jitter": draw(st.sampled_from(["none", "full", "equal"])),
        "cap_s": draw(st.sampled_from([None, 0.5, 3.0])),
    }
    if backoff == "list":
        found["delays_s"] = draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=1, max_size=3))
    return found


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    queues: dict[str, Any] = {}
    for name in QUEUES[: draw(st.integers(1, 3))]:
        limit = {
            "limit": draw(st.integers(1, 40)),
            "period_s": draw(st.sampled_from([0.1, 0.5, 1.0])),
            "unit": draw(st.sampled_from(["jobs", "users"])),
        }
        queues[name] = {
            "concurrency": draw(st.integers(1, 8)),
            "rate_limit": limit if draw(st.integers(0, 3)) == 0 else None,
            "tick_s": draw(st.sampled_from([0.05, 0.2, 1.0])),
        }
    of = st.sampled_from(list(queues))
    priority = st.sampled_from(["critical", "high", "normal", "low"])
    types: dict[str, Any] = {}
    batches = BATCHES[: draw(st.integers(1, 4))]
    for n, name in enumerate(batches):
        types[name] = {
            "queue": draw(of),
            "priority": draw(priority),
            "retry": draw(retries()),
            "timeout_s": draw(st.sampled_from([300.0, 300.0, 1.0, 0.2, 0.05])),
            "cpu_us": draw(st.sampled_from([0.0, 200.0, 1000.0])),
            "send_concurrency": draw(st.sampled_from([1, 1, 2, 5, 20])),
            "per_user": {
                "cpu_us": draw(st.sampled_from([0.0, 50.0, 1000.0])),
                "database": draw(st.sampled_from(["ledger", "ledger", "none"])),
                "provider": draw(st.sampled_from([*PROVIDERS, None])),
            },
            "follow_up": [{"to": to} for to in batches[n + 1 :] if draw(st.integers(0, 3)) == 0],
        }
    fans = [f"announce{n}" for n in range(draw(st.integers(0, 2)))]
    for name in fans:
        size = draw(st.integers(1, 60))
        types[name] = {
            "queue": draw(of),
            "priority": draw(priority),
            "retry": draw(retries()),
            "timeout_s": draw(st.sampled_from([300.0, 300.0, 0.03])),
            "cpu_us": draw(st.sampled_from([0.0, 500.0])),
            "fan_out": {
                "to": draw(st.sampled_from(batches)),
                "batch_size": size,
                "page_size": draw(st.integers(1, 150)),
            },
        }
    for name, queue in queues.items():
        if queue["rate_limit"] and not any("per_user" in job and job["queue"] == name for job in types.values()):
            queue["rate_limit"]["unit"] = "jobs"
    made = {name: job.get("fan_out", {}).get("to", name) for name, job in types.items()}
    starts = st.lists(st.sampled_from(list(types)), min_size=1, max_size=2, unique_by=lambda name: made[name])
    entries = []
    count = draw(st.integers(1, 2))
    for n in range(count):
        entries.append(
            {
                "topic": f"topic{n}",
                "share": 1.0 if count == 1 else (0.25, 0.75)[n],
                "priority": draw(st.one_of(st.none(), priority)),
                "tenant": draw(st.sampled_from(["", "north"])),
            }
        )
    return Topology.parse(
        {
            "name": "drawn",
            "entry": entries,
            "topics": {f"topic{n}": {"starts": draw(starts)} for n in range(count)},
            "queues": queues,
            "job_types": types,
            "providers": {
                name: {
                    "latency": draw(LATENCIES),
                    "temporary_share": draw(SHARES),
                    "permanent_share": draw(SHARES),
                    "timeout_s": draw(st.sampled_from([30.0, 0.05])),
                }
                for name in PROVIDERS
            },
        }
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    kind = draw(st.sampled_from(["burst", "poisson", "profile", "recorded"]))
    if kind == "burst":
        arrivals: dict[str, Any] = {"users": draw(st.integers(1, 300))}
    elif kind == "poisson":
        arrivals = {
            "rate_per_s": draw(st.sampled_from([0.5, 10.0, 40.0])),
            "duration_s": 2.0,
            "users_per_event": draw(st.integers(1, 5)),
        }
    elif kind == "profile":
        arrivals = {
            "users_per_day": draw(st.integers(1, 100)),
            "hourly": draw(st.lists(st.integers(1, 3), min_size=24, max_size=24)),
        }
    else:
        at_s = draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 1.05]), min_size=1, max_size=12))
        arrivals = {"at_s": at_s, "users": draw(st.lists(st.integers(1, 30), min_size=len(at_s), max_size=len(at_s)))}
    return Workload.parse({"arrivals": {"kind": kind, **arrivals}})


@st.composite
def deployments(draw: st.DrawFn, topology: Topology) -> Deployment:
    hosts = draw(st.sampled_from([1, 1, 2]))
    names = list(topology.queues)
    found: dict[str, Any] = {
        "hosts": hosts,
        "cores": draw(st.sampled_from([None, 1, 2])),
        "network_round_trip_ms": draw(st.sampled_from([0.0, 0.5, 2.0])) if hosts > 1 else 0.0,
        "concurrency": draw(st.sampled_from([None, 1, 4, {names[0]: 2}])),
    }
    if draw(st.booleans()):
        found["groups"] = [{"queues": names, "processes": draw(st.integers(1, 2))}, {"queues": names[-1:]}]
    else:
        found["workers"] = draw(st.integers(1, 3))
    return Deployment.parse(found)


@st.composite
def charges(draw: st.DrawFn, topology: Topology) -> Costs:
    nominal = Profile.nominal().costs(topology)
    names = ("broker_wire_s", "broker_cpu_s", "broker_job_cpu_s", "client_cpu_s", "cold_s", "queue_cpu_s", "wake_s",
             "announce_s", "enqueue_s", "handing_s")  # fmt: skip
    if draw(st.integers(0, 2)) == 0:
        return nominal
    types = {
        name: replace(costs, **{field: draw(COSTS_S) for field in vars(costs)}) for name, costs in nominal.types.items()
    }
    times: dict[str, Any] = {name: draw(COSTS_S) for name in names}
    return replace(
        nominal,
        **times,
        crowded=draw(st.sampled_from([1.0, 1.4])),
        timer_resolution_s=draw(st.sampled_from([0.0, 0.001])),
        timer_overshoot_s=draw(st.sampled_from([1e-6, 0.0001])),  # at 0 the model may wake for ever
        broker_clock_s=draw(st.sampled_from([0.0, 0.1])),
        switch_s=draw(st.sampled_from([0.0, 0.0005, 0.005])),
        types=types,
    )


def assert_equal(
    topology: Topology,
    deployment: Deployment,
    workload: Workload,
    costs: Costs | None = None,
    seed: int = 1,
    relieved: str = "",
    phase_s: float = 0.0,
    deadline_s: float | None = None,
    compiles: bool = False,
) -> pd.DataFrame:
    """Both engines' runs, compared whole; returns the attempts."""
    assert beyond_fast(topology, deployment, workload) == ""
    costs = costs or replace(Profile.nominal().costs(topology), handing_s=8e-5, switch_s=0.005)
    told = (topology, deployment, workload, costs, seed, relieved, phase_s)
    slow = Model(*told).run(deadline_s)
    fast = run_fast(*told, deadline_s, compiles)
    attempts = slow.attempts()
    pd.testing.assert_frame_equal(attempts, fast.attempts(), check_exact=True)
    assert repr(slow.measures()) == repr(fast.measures()) == repr(measures(attempts))  # repr: a NaN equals no NaN
    assert dict(slow.utilisation) == dict(fast.utilisation)
    assert (slow.wakes, slow.drained, slow.ended_at_s) == (fast.wakes, fast.drained, fast.ended_at_s)
    assert slow.threads_s == fast.threads_s
    return attempts


@pytest.fixture(autouse=True)
def _sound() -> None:
    """Drawn topologies may reach a type by two ways; its jobs then share their keys, which the usual checks forbid."""


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_is_described_both_engines_return_the_same_attempts(data: st.DataObject) -> None:
    topology = data.draw(topologies().filter(lambda found: not beyond_fast(found, Deployment(), Workload.burst(1))))
    assert_equal(
        topology,
        data.draw(deployments(topology)),
        data.draw(workloads()),
        data.draw(charges(topology)),
        data.draw(st.sampled_from([0, 1, 2**64 + 5])),
        data.draw(st.sampled_from(["", "", "", *PARTS])),
        data.draw(st.sampled_from([0.0, 0.07])),
        data.draw(st.sampled_from([None, None, None, 0.5, 3.0])),
    )


def lab(*changes: tuple[str, Any]) -> Topology:
    return override(load("data/lab.toml"), [(path, value) for path, value in changes], "test")


def shop() -> Topology:
    """Single jobs in four levels under a limit, with a follow-up in another queue and retries with full jitter."""
    retry = {"max_attempts": 4, "delay_s": 0.4, "jitter": "full"}
    mail = {"database": "ledger", "provider": "mail", "cpu_us": 300}
    sends = {"latency": {"kind": "exponential", "mean_s": 0.02}, "temporary_share": 0.2}
    low, high = {"queue": "web", "priority": "low", "retry": retry}, {"queue": "web", "priority": "high"}
    return Topology.parse(
        {
            "name": "shop",
            "entry": [{"job_type": "order", "share": 0.6}, {"job_type": "news", "share": 0.4, "tenant": "north"}],
            "queues": {
                "web": {"concurrency": 4, "rate_limit": {"limit": 60, "period_s": 0.5}},
                "print": {"concurrency": 1, "tick_s": 1.0},
            },
            "job_types": {
                "order": {**high, "per_user": mail, "follow_up": [{"to": "receipt"}, {"to": "news"}], "retry": retry},
                "receipt": {"queue": "print", "cpu_us": 2000},
                "news": {**low, "per_user": {**mail, "provider": "text", "cpu_us": 0}, "send_concurrency": 3},
            },
            "providers": {"mail": sends, "text": {**sends, "channel": "sms"}},
        }
    )


CONSTANT = ("providers.email.latency", {"kind": "constant", "mean_s": 0.01})
FAILING = (("providers.email.temporary_share", 0.1), ("providers.email.permanent_share", 0.05))
TWO, SIX = Deployment(workers=2), Deployment(workers=3, concurrency=6)
HARD: dict[str, tuple[Topology, Deployment, Workload, str]] = {
    "everything ends at once": (lab(CONSTANT), SIX, Workload.burst(2000), ""),
    "more processes than cores": (
        lab(("job_types.notify.per_user.cpu_us", 2000)), Deployment(workers=3, cores=1), Workload.burst(600), ""),
    "two loops in each process": (lab(*FAILING), TWO, Workload.burst(700), "loop"),
    "retries on the tick": (lab(*FAILING, CONSTANT), TWO, Workload.burst(1500), ""),
    "retries at once, with equal jitter": (
        lab(*FAILING, ("job_types.notify.retry.delay_s", 0), ("job_types.notify.retry.jitter", "equal")),
        TWO, Workload.burst(900), ""),
    "batches that time out, and users who are never reached": (
        lab(*FAILING, ("job_types.notify.timeout_s", 0.7), ("job_types.notify.send_concurrency", 3),
            ("job_types.notify.retry.max_attempts", 5)), SIX, Workload.burst(900), ""),
    "a fan-out that times out between its pages": (
        lab(("job_types.announce.timeout_s", 0.02), ("job_types.announce.fan_out.page_size", 100)),
        TWO, Workload.burst(1500), ""),
    "sends that time out": (lab(("providers.email.timeout_s", 0.02)), TWO, Workload.burst(800), ""),
    "many attempts that all fail": (
        lab(("providers.email.temporary_share", 1.0), ("job_types.notify.retry.max_attempts", 30),
            ("job_types.notify.retry.delay_s", 0.1), ("job_types.notify.retry.factor", 1)),
        TWO, Workload.burst(60), ""),
    "a rate limit on users": (
        lab(("queues.notifications.rate_limit", {"limit": 150, "period_s": 0.2, "unit": "users"})),
        SIX, Workload.burst(1500), ""),
    "more than 62 processes": (lab(CONSTANT), Deployment(workers=64), Workload.burst(6500), ""),
    "a shop at 90 orders a second": (
        shop(), Deployment(hosts=2, network_round_trip_ms=0.4),
        Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 90, "duration_s": 6}}), ""),
    "a shop's evening rush": (shop(), TWO, Workload.burst(700), ""),
    "a shop with twice the limit": (shop(), TWO, Workload.burst(300), "rate_limit"),
    "orders that are declined, and charges without an answer": (
        override(load("shop"), {f"providers.payments.{name}": value for name, value in (
            ("temporary_share", 0.3), ("permanent_share", 0.2), ("latency.mean_s", 0.1), ("timeout_s", 0.2))}, "test"),
        TWO, Workload.burst(300), ""),
    "nobody": (shop(), TWO, Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 1e-9, "duration_s": 1}}), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_hard_cases(name: str) -> None:
    topology, deployment, workload, relieved = HARD[name]
    attempts = assert_equal(topology, deployment, workload, seed=7, relieved=relieved)
    if "time" in name:
        assert (attempts["outcome"] == "retry").any()


@pytest.mark.timeout(400)  # compiling takes a minute, beside other tests two
def test_the_compiled_kernel_returns_them_too() -> None:
    """One compiled function serves all descriptions: what is left to show is that it computes alike."""
    pytest.importorskip("numba")
    for topology, deployment, workload, relieved in HARD.values():
        assert_equal(topology, deployment, workload, seed=7, relieved=relieved, compiles=True)


class Interrupted(Exception):
    """What a signal's handler raises here."""


def interrupts(number: int, _: object) -> None:
    raise Interrupted(number)


@pytest.fixture
def _handlers_that_raise() -> Iterator[None]:
    before = {number: signal.signal(number, interrupts) for number in HELD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers_that_raise")
@pytest.mark.parametrize("number", HELD, ids=lambda number: number.name)
def test_a_signal_waits_until_compiled_code_has_ended(number: signal.Signals) -> None:
    pytest.importorskip("numba")
    reached = []

    class Kernel:
        def compile(self, types: object) -> None:
            pass

        def __call__(self, tables: object, sends: object) -> tuple[object, ...]:
            signal.raise_signal(number)
            reached.append("the end")
            return ()

    with pytest.raises(Interrupted):
        call(Kernel(), (1, 2.0), (3,))  # type: ignore[arg-type]  # anything that numba knows the type of
    assert reached
    with pytest.raises(Interrupted):  # and afterwards all is as before
        signal.raise_signal(number)


def test_a_signal_that_python_does_not_handle_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_deadline_stops_both_at_the_same_moment() -> None:
    for deadline_s in (0.0, 0.02, 1.0, 1e6):
        assert_equal(lab(*FAILING), TWO, Workload.burst(500), deadline_s=deadline_s)


def test_what_is_beyond_the_fast_engine_is_said_and_left_to_simpy() -> None:
    outage = {"kind": "provider_outage", "at_s": 0.1, "duration_s": 1.0, "provider": "email"}
    workload = Workload.parse({"arrivals": {"kind": "burst", "users": 50}, "faults": [outage]})
    assert predict(lab(), users=50, replications=1).engine == "fast"
    assert predict(lab(), users=50, replications=1, engine="simpy").engine == "simpy"
    forecast = predict(lab(), workload=workload, replications=1)
    assert forecast.engine == "simpy: a fault is to happen (provider outage)"
    with pytest.raises(UsageError, match='engine="fast" cannot simulate this: a fault is to happen'):
        predict(lab(), workload=workload, engine="fast")
    with pytest.raises(UsageError, match='engine="quick": "auto", "simpy" or "fast"'):
        predict(lab(), users=50, engine="quick")  # type: ignore[arg-type]


def test_predictions_are_the_same_by_either_engine() -> None:
    fast, slow = (predict(shop(), users=120, replications=2, engine=engine) for engine in ("auto", "simpy"))
    pd.testing.assert_frame_equal(fast.attempts, slow.attempts, check_exact=True)
    assert fast.to_dicts() == slow.to_dicts()


def test_importing_sim_loads_no_compiler() -> None:
    code = "import sys, sim; sim.predict('school-events', users=100, replications=1); print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
