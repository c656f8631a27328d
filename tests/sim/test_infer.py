"""From attempts back to a description: what was simulated is found again, and what cannot be used is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import saqkit
import sim
from saqkit.errors import RunError, UsageError
from saqkit.spec.distributions import Empirical, Exponential, Gamma, Lognormal
from saqkit.spec.overriding import override
from saqkit.spec.workload import Poisson, Recorded, Workload
from sim.fit.families import fit_times, share
from sim.fit.profile import Estimate, Profile
from sim.inference.delays import fit_retry

ROOT = Path(__file__).parents[2]

POST = """
name = "post"
entry = [{ job_type = "letter", share = 0.7 }, { job_type = "parcel", share = 0.3, tenant = "north" }]

[queues.letters]
concurrency = 3
[queues.parcels]
concurrency = 2

[job_types.letter]
queue = "letters"
retry = { max_attempts = 3, backoff = "list", delays_s = [2, 6] }
per_user = { provider = "carrier" }
follow_up = [{ to = "receipt" }]
[job_types.receipt]
queue = "letters"
priority = "low"
per_user = { provider = "clerk", database = "none" }
[job_types.parcel]
queue = "parcels"
priority = "high"
per_user = { provider = "truck" }

[providers.carrier]
latency = { kind = "lognormal", mean_s = 0.5, cv = 0.8 }
temporary_share = 0.1
[providers.truck]
latency = { kind = "gamma", mean_s = 0.9, cv = 0.4 }
[providers.clerk]
latency = { kind = "exponential", mean_s = 0.1 }
"""


def post() -> saqkit.Topology:
    return saqkit.Topology.parse(tomllib.loads(POST))


def free() -> Profile:
    """A host on which nothing but the described work takes time."""
    nominal, nothing = Profile.nominal(), Estimate(value=0.0)
    zero: dict[str, Any] = {name: nothing for name, value in nominal.host if isinstance(value, Estimate)}
    zero |= {"cpu_scale": Estimate(value=1.0), "crowded": Estimate(value=1.0), "restart_s": Estimate(value=1.5)}
    host = nominal.host.model_copy(update={**zero, "timer_resolution_s": 0.0, "broker_clock_s": 0.0})
    types = {
        name: job.model_copy(update={n: nothing for n, value in job if isinstance(value, Estimate)})
        for name, job in nominal.job_types.items()
    }
    return nominal.model_copy(update={"host": host, "job_types": types})


def simulated(topology: saqkit.Topology, **how: Any) -> pd.DataFrame:
    settings = {"profile": free(), "replications": 1, "seed": 3, **how}
    attempts: pd.DataFrame = sim.predict(topology, **settings).attempts
    return attempts


@pytest.fixture(scope="module")
def attempts() -> pd.DataFrame:
    arriving = Workload(arrivals=Poisson(rate_per_s=5, duration_s=250))
    return simulated(post(), workload=arriving, workers=2)


@pytest.fixture(scope="module")
def found(attempts: pd.DataFrame) -> sim.Inferred:
    return sim.infer(attempts)


def again(found: sim.Inferred, **how: Any) -> dict[str, dict[str, float]]:
    prediction = sim.predict(
        found.topology, workload=found.workload, deployment=found.deployment, profile=found.profile, **how
    )
    return prediction.combinations[0].measures


# --- what was simulated is found again ------------------------------------------------------------------------------


def test_the_shape_is_found(found: sim.Inferred) -> None:
    topology, workload = found
    assert set(topology.queues) == {"letters", "parcels"}
    assert {name: job.queue for name, job in topology.job_types.items()} == {
        "letter": "letters", "receipt": "letters", "parcel": "parcels",
    }  # fmt: skip
    assert {name: int(job.priority) for name, job in topology.job_types.items()} == {
        "letter": 3, "receipt": 4, "parcel": 2,
    }  # fmt: skip
    assert [edge.to for edge in topology.job_types["letter"].follow_up] == ["receipt"]
    assert [(entry.job_type, entry.tenant) for entry in topology.entry] == [("letter", ""), ("parcel", "north")]
    assert found.deployment.workers == 2
    assert {queue: found.deployment.slots(topology, queue) for queue in topology.queues} == {"letters": 3, "parcels": 2}
    assert isinstance(workload.arrivals, Recorded)
    assert len(workload.arrivals.at_s) == found.attempts["event"].nunique()
    counts = found.attempts[found.attempts["parent"] == ""].drop_duplicates("job")["job_type"].value_counts()
    assert workload.arrivals.entries.count("parcel") == counts["parcel"]
    assert any("as those of a Poisson process" in note for note in found.notes)
    assert topology.job_types["letter"].retry.max_attempts == 3


def test_families_are_told_apart_and_parameters_lie_within_their_intervals(found: sim.Inferred) -> None:
    latency = {name: provider.latency for name, provider in found.topology.providers.items()}
    assert isinstance(latency["letter"], Lognormal)
    assert isinstance(latency["parcel"], Gamma)
    assert isinstance(latency["receipt"], Exponential)
    assert latency["letter"].cv == pytest.approx(0.8, abs=0.08)
    assert latency["parcel"].cv == pytest.approx(0.4, abs=0.04)
    numbers = found.numbers.set_index(["of", "what"])
    for name, true in (("letter", 0.5), ("parcel", 0.9), ("receipt", 0.1)):
        row = numbers.loc[(name, "service beside CPU, mean (s)")]
        half = float(row["hi"] - row["lo"]) / 2
        # Twice a 90 % half-width: one time in a thousand it lies outside.
        assert abs(float(row["value"]) - true) <= 2 * half < 0.2 * true, name
    failed = numbers.loc[("letter", "failed attempts, share")]
    assert failed["lo"] < 0.1 < failed["hi"]
    assert numbers.loc[("parcel", "failed attempts, share"), "value"] == 0


def test_delays_are_found_with_the_grid_in_them(found: sim.Inferred) -> None:
    policy = found.topology.job_types["letter"].retry
    assert policy.base_delay_s(1) == pytest.approx(2.1, abs=0.1)  # 2 s, then up to 0.2 s of the tick
    if policy.backoff == "list" and len(policy.delays_s) > 1:
        assert policy.base_delay_s(2) == pytest.approx(6.1, abs=0.1)


def test_the_prediction_from_it_is_the_one_from_the_truth(attempts: pd.DataFrame, found: sim.Inferred) -> None:
    truth, inferred = saqkit.spec.trace.measures(attempts), again(found, replications=4)
    for name, tolerance in (("makespan_s", 0.02), ("latency_mean_s", 0.12), ("latency_p95_s", 0.12)):
        assert inferred[name]["mean"] == pytest.approx(truth[name], rel=tolerance), name
    assert inferred["attempts"]["mean"] == pytest.approx(truth["attempts"], rel=0.03)


def test_other_arrivals_can_be_asked_for(attempts: pd.DataFrame) -> None:
    poisson = sim.infer(attempts, arrivals="poisson").workload.arrivals
    assert isinstance(poisson, Poisson)
    assert poisson.rate_per_s == pytest.approx(5, rel=0.06)
    assert sim.infer(attempts, arrivals="burst").workload.arrivals.users == attempts["event"].nunique()
    with pytest.raises(UsageError, match="takes a day"):
        sim.infer(attempts, arrivals="profile")
    with pytest.raises(UsageError, match='did you mean "poisson"'):
        sim.infer(attempts, arrivals="poison")


def test_hours_of_the_day_are_found() -> None:
    hourly = [1.0] * 24
    hourly[13] = 20.0
    from saqkit.spec.workload import Profile as Hours

    arriving = Workload(arrivals=Hours(users_per_day=1500, hourly=tuple(hourly), days=2))
    parcels = override(post(), {"entry": [{"job_type": "parcel"}]})
    table = simulated(parcels, workload=arriving)
    first_s = next(arriving.arrivals.times(3))[0]
    table.attrs["epoch"] = 1_700_006_400.0 + first_s  # 2023-11-15, midnight in UTC, and the first arrival
    fitted = sim.infer(table, arrivals="profile").workload.arrivals
    assert isinstance(fitted, Hours)
    assert fitted.days == 2
    assert fitted.hourly[13] / sum(fitted.hourly) == pytest.approx(20 / 43, abs=0.03)
    assert fitted.users_per_day == pytest.approx(1500, rel=0.08)


def test_a_fan_out_with_batches_is_found_from_the_table_alone() -> None:
    lab = override(saqkit.load(ROOT / "data" / "lab.toml"), {
        "job_types.notify.fan_out": "none", "job_types.announce.fan_out.batch_size": 20,
        "job_types.notify.per_user.database": "none", "providers.email.temporary_share": 0.02,
        "providers.email.permanent_share": 0.01,
    })  # fmt: skip
    table = simulated(lab, users=2000, workers=2, concurrency=4)
    found = sim.infer(table)
    announce, notify = found.topology.job_types["announce"], found.topology.job_types["notify"]
    assert announce.fan_out is not None
    assert (announce.fan_out.to, announce.fan_out.batch_size) == ("notify", 20)
    assert notify.send_concurrency == 1
    provider = found.topology.providers["notify"]
    assert provider.latency.mean_s == pytest.approx(0.02, rel=0.03)
    assert isinstance(provider.latency, Lognormal)
    assert provider.latency.cv == pytest.approx(0.5, rel=0.2)
    assert 0.01 < provider.temporary_share < 0.03
    assert 0.005 < provider.permanent_share < 0.016
    assert found.workload.arrivals.users == 2000
    assert found.deployment.slots(found.topology, "notifications") == 4
    measured, predicted = saqkit.spec.trace.measures(table), again(found, replications=5)
    assert predicted["makespan_s"]["mean"] == pytest.approx(measured["makespan_s"], rel=0.1)
    assert predicted["latency_p50_s"]["mean"] == pytest.approx(measured["latency_p50_s"], rel=0.05)


def test_a_measured_run_is_predicted_from_what_is_inferred_of_it() -> None:
    run = saqkit.Run.load(ROOT / "data" / "runs" / "quickstart.parquet")
    found = sim.infer(run)
    measured, predicted = run.measures(), again(found, replications=10)
    for name in ("makespan_s", "latency_p50_s", "latency_p95_s", "throughput_users_per_s"):
        assert predicted[name]["mean"] == pytest.approx(measured[name], rel=0.05), name
    assert found.run() is run


def test_cycles_shares_and_second_fan_outs_become_events_of_their_own() -> None:
    def row(job: str, job_type: str, parent: str, at: float) -> dict[str, Any]:
        return {"job": job, "job_type": job_type, "queue": "q", "parent": parent, "priority": 3, "attempt": 1,
                "users": 1, "users_done": 1, "queued_at": at, "ready_at": at, "taken_at": at, "started_at": at,
                "finished_at": at + 0.1, "event_at": at, "outcome": "done"}  # fmt: skip

    rows = []
    for n in range(40):
        rows += [row(f"a{n}", "a", "", n), row(f"b{n}", "b", f"a{n}", n + 0.2), row(f"a{n}x", "a", f"b{n}", n + 0.4)]
        if n < 4:
            rows.append(row(f"c{n}", "c", f"a{n}", n + 0.3))
    found = sim.infer(saqkit.spec.trace.attempts_frame(rows))
    assert [edge.to for edge in found.topology.job_types["a"].follow_up] == ["b"]
    assert found.topology.job_types["b"].follow_up == ()
    text = "\n".join(found.notes)
    assert "40 jobs a that b enqueued arrive by themselves: edges may not form a cycle" in text
    assert "4 jobs c that a enqueued arrive by themselves: only 4 of 80 lead to one" in text
    assert {entry.job_type for entry in found.topology.entry} == {"a", "c"}


def test_names_priorities_and_queues_that_a_description_cannot_hold() -> None:
    rows = [
        {"job": f"j{n}", "job_type": "app.<locals>.send mail" if n % 2 else "7up", "queue": "q1" if n % 3 else "q 2",
         "priority": (0, 10, 90)[n % 3], "attempt": 1, "users": 1, "users_done": 1, "queued_at": n, "ready_at": n,
         "taken_at": n, "started_at": n, "finished_at": n + 0.5, "event_at": n, "outcome": "done"}
        for n in range(60)
    ]  # fmt: skip
    found = sim.infer(saqkit.spec.trace.attempts_frame(rows))
    assert set(found.topology.job_types) == {"app._locals_.send_mail", "app._locals_.send_mail.q_2", "n7up", "n7up.q_2"}
    assert set(found.topology.queues) == {"q1", "q_2"}
    assert any("3 priorities became levels" in note for note in found.notes)
    again(found, replications=1)


def test_says_what_it_found_and_draws_it(found: sim.Inferred) -> None:
    assert repr(found).startswith("Inferred(")
    assert "arrivals: recorded" in repr(found)
    report = found.report()
    assert "lognormal: least AIC" in report
    assert "letter" in found._repr_html_()
    axes = found.plot("parcel")
    assert axes.get_xlabel() == "service time beside CPU (s)"
    assert "gamma" in axes.get_legend().get_texts()[1].get_text()
    with pytest.raises(UsageError, match='did you mean "parcel"'):
        found.plot("parcle")
    with pytest.raises(UsageError, match=r"saqkit\.record"):
        found.run()


def test_doubts_are_told() -> None:
    limited = override(post(), {"queues.letters.rate_limit.limit": 1, "entry": [{"job_type": "letter"}]})
    arriving = Workload(arrivals=Poisson(rate_per_s=0.8, duration_s=300))
    notes = sim.infer(simulated(limited, workload=arriving, workers=2)).notes
    assert any("beside free slots: a rate limit" in note for note in notes)
    few = sim.infer(simulated(post(), users=5, workers=1)).notes
    assert any("are few" in note for note in few)


def test_refuses_what_it_cannot_use(attempts: pd.DataFrame) -> None:
    with pytest.raises(RunError, match="none of them done"):
        sim.infer(attempts[attempts["outcome"] == "retry"])
    with pytest.raises(RunError, match="column event is missing"):
        sim.infer(attempts.drop(columns="event"))


# --- distributions and delays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (Lognormal(mean_s=2.0, cv=1.2), "lognormal"),
        (Gamma(mean_s=0.3, cv=0.5), "gamma"),
        (Exponential(mean_s=5.0), "exponential"),
    ],
)
def test_the_right_family_is_taken_nearly_always(family: Any, kind: str) -> None:
    found = [fit_times(family.quantiles(np.random.default_rng(n).uniform(size=400))) for n in range(60)]
    kinds = [fit.distribution.kind for fit in found]
    assert kinds.count(kind) >= 50, kinds
    inside = sum(fit.mean_lo <= family.mean_s <= fit.mean_hi for fit in found)
    assert 47 <= inside <= 60  # 54 expected of a 90 % interval


def test_no_family_is_taken_where_none_fits() -> None:
    rng = np.random.default_rng(1)
    two = np.concatenate([rng.normal(1, 0.05, 300), rng.normal(5, 0.2, 200)])
    fit = fit_times(two)
    assert isinstance(fit.distribution, Empirical)
    assert "of the times lie elsewhere" in fit.why
    assert fit.distribution.mean_s == pytest.approx(two.mean(), rel=0.01)
    assert fit_times(np.full(50, 0.25)).distribution.kind == "constant"
    assert "too few" in fit_times(rng.uniform(size=10)).why
    assert "are 0" in fit_times(np.append(rng.uniform(size=40), 0.0)).why
    large = fit_times(rng.pareto(1.3, 20_000) + 0.01)
    assert len(large.distribution.values_s) <= 1001


def test_delays_tell_policy_and_jitter() -> None:
    rng = np.random.default_rng(2)

    def seen(*bases: float, low: float = 1.0, tick_s: float = 0.0) -> dict[int, Any]:
        return {n: b * rng.uniform(low, 1, 40) + rng.uniform(0, tick_s, 40) for n, b in enumerate(bases, start=1)}

    fixed, _ = fit_retry(seen(3, 3, tick_s=1.0), 3, tick_s=1.0)
    assert (fixed.backoff, fixed.jitter) == ("fixed", "none")
    assert fixed.delay_s == pytest.approx(3, abs=0.1)
    doubled, _ = fit_retry(seen(2, 4, 8), 4, tick_s=None)
    assert (doubled.backoff, doubled.delay_s, doubled.factor) == ("exponential", 2, 2)
    listed, _ = fit_retry(seen(5, 25), 3, tick_s=0.2)
    assert (listed.backoff, listed.delays_s) == ("list", (5, 25))
    full, _ = fit_retry(seen(10, 20, 40, low=0.0), 4, tick_s=None)
    assert (full.jitter, full.backoff) == ("full", "exponential")
    assert full.delay_s == pytest.approx(10, rel=0.1)
    equal, _ = fit_retry(seen(10, low=0.5), 2, tick_s=None)
    assert equal.jitter == "equal"
    none, why = fit_retry({}, 5, tick_s=None)
    assert (none.max_attempts, why) == (5, "nothing was tried again")


def test_shares_have_intervals() -> None:
    assert share(0, 0) == (0.0, 0.0, 1.0)
    p, low, high = share(10, 100)
    assert p == 0.1
    assert 0.05 < low < 0.1 < high < 0.17
