"""Payments in the model: who is declined is told nothing, and another attempt asks for the charge before it charges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from measured import run as measured_run
from shop_system import shop
from simulated_run import free_profile

import sim
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import LOST_SHARE, Stream, uniform
from saqkit.spec.topology import Topology
from saqkit.spec.workload import KillWorker, Workload
from sim.engine.coverage import beyond_fast
from sim.engine.fast.engine import run_fast
from sim.engine.model import Model
from sim.fit.profile import Profile

USERS, SEED, ASK_S = 40, 1, 0.1
OFTEN = {"max_attempts": 9, "backoff": "fixed", "delay_s": 0.05}


def unlucky(**changes: Any) -> Topology:
    """A fifth of the orders are declined, and a third of the charges have no answer."""
    return shop(**{
        "providers__payments__permanent_share": 0.2, "providers__payments__temporary_share": 0.35,
        "providers__payments__latency": {"kind": "constant", "mean_s": ASK_S}, "job_types__payment__retry": OFTEN,
        **changes,
    })  # fmt: skip


def simulated(topology: Topology, users: int = USERS, seed: int = SEED, **how: Any) -> pd.DataFrame:
    return sim.predict(
        topology, users=users, profile=free_profile(), seed=seed, same_draw=True, replications=1, **how
    ).attempts


def of(rows: pd.DataFrame, job_type: str) -> pd.DataFrame:
    return rows[rows["job_type"] == job_type]


def declined(users: int = USERS, seed: int = SEED) -> int:
    return sum(uniform(seed, Stream.PERMANENT, 1, user) < 0.2 for user in range(1, users + 1))


@pytest.mark.row("003.10")
async def test_a_measured_run_and_the_model_follow_up_the_same_orders_and_ask_as_often() -> None:
    """The seed draws the same fates for both, so counts are equal; times only as far as this machine keeps them."""
    topology = unlucky()
    measured, model = (await measured_run(topology, users=USERS, workers=1, seed=SEED)).attempts, simulated(topology)
    assert 0 < declined() < USERS
    for name in ("payment", "receipt"):
        for column in ("users", "users_done", "users_failed"):
            assert of(model, name)[column].sum() == of(measured, name)[column].sum(), (name, column)
        assert (of(model, name)["outcome"].value_counts() == of(measured, name)["outcome"].value_counts()).all()
    assert len(of(model, "receipt")) == USERS - declined()

    def asked(rows: pd.DataFrame) -> float:
        """How often the provider was asked, on the whole: once in a first attempt, in another one once or twice."""
        return float(of(rows, "payment")["provider_s"].sum()) / ASK_S

    twice = (of(model, "payment")["provider_s"] > 1.5 * ASK_S).sum()
    assert twice > 0, "after a refusal the charge is looked for and then made"
    assert asked(model) == pytest.approx(len(of(model, "payment")) + twice, rel=0.03)
    assert asked(measured) >= 0.99 * asked(model)
    assert asked(measured) == pytest.approx(asked(model), abs=0.45 * twice + 0.1 * len(of(model, "payment")))


@pytest.mark.parametrize("engine", ["simpy", "fast"])
def test_an_answer_that_was_lost_is_asked_for_and_a_refused_charge_is_made(engine: Any) -> None:
    rows = of(simulated(unlucky(), engine="auto" if engine == "fast" else engine), "payment")
    second = rows[rows["attempt"] == 2].assign(user=lambda found: found["job"].str.split("-").str[-1].astype(int))
    assert len(second) > 5
    for row in second.itertuples():
        trouble = uniform(SEED, Stream.TEMPORARY, 1, int(str(row.user)), 1)
        times = 1 if trouble < 0.35 * LOST_SHARE else 2
        assert row.provider_s == pytest.approx(times * ASK_S, abs=0.02)
        assert times == 2 or row.outcome == "done", "a charge that was made is found"


def test_whoever_takes_too_long_to_say_whether_it_charged_is_asked_again() -> None:
    slow = {"kind": "lognormal", "mean_s": 0.1, "cv": 1.0}
    patient = {"providers__payments__timeout_s": 0.15, "providers__payments__latency": slow}
    rows = of(simulated(shop(job_types__payment__retry=OFTEN, **patient)), "payment")
    assert (rows["outcome"] == "retry").sum() > 3
    assert rows["provider_s"].max() <= 2 * 0.15 + 0.01


def both(topology: Topology, workload: Workload, deployment: Deployment, seed: int) -> pd.DataFrame:
    costs = replace(Profile.nominal().costs(topology), switch_s=0.0005)
    slow = Model(topology, deployment, workload, costs, seed).run().attempts()
    fast = run_fast(topology, deployment, workload, costs, seed, compiles=False).attempts()
    pd.testing.assert_frame_equal(slow, fast, check_exact=True)
    return slow


@pytest.mark.parametrize("seed", range(4))
def test_both_engines_return_the_same_payments(seed: int) -> None:
    latency = {"kind": "lognormal", "mean_s": 0.05, "cv": 1.0}
    topology = unlucky(providers__payments__timeout_s=0.12, providers__payments__latency=latency,
                       job_types__payment__timeout_s=[20, 0.1][seed % 2])  # fmt: skip
    assert beyond_fast(topology, Deployment(), Workload.burst(1)) == ""
    rows = both(topology, Workload.burst(150), Deployment(workers=2), seed)
    paid = of(rows, "payment")
    assert (paid["outcome"] == "retry").any()
    assert len(of(rows, "receipt")) == paid["users_done"].sum() < 150


def test_a_declined_order_is_told_nothing_after_a_crash_either() -> None:
    workload = Workload(arrivals=Workload.burst(USERS).arrivals, faults=(KillWorker(at_s=0.6),))
    rows = sim.predict(unlucky(), workload=workload, profile=free_profile(), seed=SEED, replications=1,
                       same_draw=True).attempts  # fmt: skip
    assert (rows["outcome"] == "lost").any()
    assert len(of(rows, "receipt")["job"].unique()) == USERS - declined()


def test_on_stock_saq_a_declined_order_is_told_nothing_either() -> None:
    rows = simulated(unlucky(), queue="stock")
    assert len(of(rows, "receipt")["job"].unique()) == of(rows, "payment")["users_done"].sum() == USERS - declined()


def test_of_a_job_that_pays_for_several_orders_those_are_followed_up_that_were_paid() -> None:
    """Only SimPy plays that, and says so."""
    data = unlucky().to_dict()
    data["job_types"]["bills"] = {"queue": "payments", "fan_out": {"to": "payment", "batch_size": 10}}
    data["entry"] = [{"job_type": "bills"}]
    topology = Topology.parse(data)
    assert beyond_fast(topology, Deployment(), Workload.burst(1)) == "a job of payment pays for several orders"
    rows = simulated(topology)
    assert of(rows, "receipt").groupby("job")["users"].max().sum() == USERS - declined()
    assert of(rows, "payment")["users_failed"].sum() == declined()


def test_a_provider_of_messages_and_payments_is_played_by_simpy() -> None:
    data = shop().to_dict()
    data["job_types"]["receipt"]["per_user"]["provider"] = "payments"
    reason = beyond_fast(Topology.parse(data), Deployment(), Workload.burst(1))
    assert reason == "provider payments has both messages and payments"
