"""What holds in every drained run of the model, whatever was simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from saqkit.spec.lifecycle import POISON_CRASHES
from saqkit.spec.topology import Queue, RateLimit
from sim.engine.choosing_line import choosing_field
from sim.engine.model import Model
from sim.engine.outcome import Outcome
from sim.engine.stock import StockModel

ORDER = ["event_at", "queued_at", "ready_at", "taken_at", "started_at", "finished_at"]
EXACT = 1e-9
MICROSECOND = 1e-6  # on whole ones a queue that chooses keeps its windows, as the broker does


@contextmanager
def every_run_checked() -> Iterator[list[Model]]:
    """Every run of a model inside that drains is checked by `sound`; gives the models that were."""
    checked: list[Model] = []
    bare: Callable[..., Outcome] = Model.run

    def run(model: Model, deadline_s: float | None = None) -> Outcome:
        outcome = bare(model, deadline_s)
        if outcome.drained:
            sound(model, outcome)
            checked.append(model)
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "run", run)
        yield checked


def sound(model: Model, outcome: Outcome) -> pd.DataFrame:
    """Assert it of a drained run, and return its attempts."""
    frame = outcome.attempts()
    assert model.open_jobs == 0
    if len(frame):
        assert frame["finished_at"].max() <= outcome.ended_at_s
        ordered = frame.sort_values(["job", "finished_at"], kind="stable")
        _times_are_in_order(ordered, model)
        _every_job_ends_once(ordered, model)
        _every_user_is_served_or_fails_once(ordered, model)
        _no_slot_serves_two(ordered, model)
        _nothing_is_busier_than_it_can_be(ordered, model, outcome)
        for name, line in model.lines.items():
            if not isinstance(model, StockModel):
                _the_limits_are_kept(frame[frame["queue"] == name], line.spec, model)
    return frame


def _times_are_in_order(frame: pd.DataFrame, model: Model) -> None:
    """An attempt that was lost before its function began has no start."""
    times = frame[ORDER].to_numpy()
    unbegun = np.isnan(times[:, 4])
    assert (frame["outcome"][unbegun] == "lost").all()
    times[unbegun, 4] = times[unbegun, 3]
    assert (np.diff(times, axis=1) >= -EXACT).all()
    one_by_one = [name for name, job_type in model.topology.job_types.items() if job_type.send_concurrency == 1]
    spent = frame["provider_s"] + frame["database_s"] - (times[:, 5] - times[:, 4])
    assert (spent[frame["job_type"].isin(one_by_one)] <= EXACT).all()


def _every_job_ends_once(frame: pd.DataFrame, model: Model) -> None:
    """Its last row is its only last one; executions count from 1 without a gap, and a crash repeats its number."""
    ends = frame["outcome"].isin(["done", "dead", "cancelled"]) | (frame["crashes"] >= POISON_CRASHES)
    assert (ends == ~frame["job"].duplicated(keep="last")).all()
    first, given_back = ~frame["job"].duplicated(), frame["outcome"].shift().isin(["lost", "released"])
    assert (frame["attempt"][first] == 1).all()
    assert (frame["attempt"].diff()[~first] == (~given_back[~first]).astype(int)).all()
    allowed = frame["job_type"].map({name: t.retry.max_attempts for name, t in model.topology.job_types.items()})
    assert (frame["attempt"] <= allowed).all()


def _every_user_is_served_or_fails_once(frame: pd.DataFrame, model: Model) -> None:
    """From attempt to attempt of a job, and in sum over each event and what it starts."""
    left = frame["users"] - frame["users_done"] - frame["users_failed"]
    first, last = ~frame["job"].duplicated(), ~frame["job"].duplicated(keep="last")
    assert (left[last] == 0).all()
    again, others = left.shift()[~first] - frame["users"][~first], model.ledger is not None
    assert (again >= 0).all() if others else (again == 0).all(), "whom another job has served is not served again"
    jobs = frame[first]
    type_of = jobs.set_index("job")["job_type"]
    served = jobs.groupby(["event", "job_type", jobs["parent"].map(type_of).fillna("")])["users"].sum()
    done = set(frame["job"][frame["outcome"] == "done"])
    for arrival in model.arrivals:
        for name in model.topology.starts(arrival.entry):
            fan_out = model.topology.job_types[name].fan_out
            if fan_out is None:
                here = served[str(arrival.event), name, ""]
            elif f"{name}-{arrival.event}" in done:
                here = served[str(arrival.event), fan_out.to, name]
            else:
                continue
            assert here == arrival.users or (others and here < arrival.users)


def _no_slot_serves_two(frame: pd.DataFrame, model: Model) -> None:
    """From being taken to being finished; what a dead process held is not counted."""
    held = frame[frame["outcome"] != "lost"]
    for (_, queue), rows in held.groupby(["worker", "queue"]):
        assert most_at_once(rows) <= model.slots(str(queue))


def _the_limits_are_kept(frame: pd.DataFrame, queue: Queue, model: Model) -> None:
    slack_s = MICROSECOND if choosing_field(queue) else EXACT
    if queue.rate_limit:
        no_window_exceeds(frame, queue.rate_limit, slack_s)
    for _, rows in frame.groupby("tenant"):
        if queue.tenant_rate_limit:
            no_window_exceeds(rows, queue.tenant_rate_limit, slack_s)
    types = model.topology.job_types
    values = {**{name: frame[name] for name in ("tenant", "job_type", "event")},
              "provider": frame["job_type"].map({name: t.per_user.provider for name, t in types.items()})}  # fmt: skip
    for limit in queue.running_limits:
        for _, rows in frame.groupby(values[limit.key]):
            assert most_at_once(rows) <= limit.limit


def no_window_exceeds(frame: pd.DataFrame, limit: RateLimit, slack_s: float = EXACT) -> None:
    """The weight taken in any window of the period; a job beyond the limit is alone in its own, longer one."""
    taken = frame.sort_values("taken_at", kind="stable")
    at = taken["taken_at"].to_numpy()
    weight = np.maximum(1, taken["users"].to_numpy()) if limit.unit == "users" else np.ones(len(taken))
    upto = np.concatenate(([0.0], np.cumsum(weight)))
    length = limit.period_s * np.maximum(1.0, weight / limit.limit)
    end = np.searchsorted(at, at + length - slack_s, side="left")
    inside = upto[end] - upto[:-1]
    assert (inside <= np.maximum(limit.limit, weight)).all()


def most_at_once(frame: pd.DataFrame) -> int:
    """How many attempts were under way at once, from being taken to being finished, or if lost to being recovered."""
    at = np.concatenate([frame["finished_at"], frame["taken_at"]])
    change = np.repeat([-1, 1], len(frame))
    return int(np.cumsum(change[np.lexsort((change, at))]).max(initial=0))


def _nothing_is_busier_than_it_can_be(frame: pd.DataFrame, model: Model, outcome: Outcome) -> None:
    span_s, servers = outcome.ended_at_s, 2 if model.relieved == "loop" else 1
    for worker in model.workers:
        if not worker.loop._running:  # a burst counts from its beginning
            assert worker.busy_s + worker.loop.busy_s <= span_s * servers * (1 + EXACT)
    if all(not worker.loop._running for worker in model.workers):
        for host in model.hosts:
            assert host.core_s <= span_s * host.cores * (1 + EXACT)
    # The law of utilisation: slots busy on average = the seconds they were held / the time.
    slots = sum(model.slots(queue) for worker in model.workers for queue in worker.queues)
    service_s = float((frame["finished_at"] - frame["started_at"]).sum())
    if span_s:
        assert outcome.utilisation["slots"] == pytest.approx(min(1.0, service_s / (slots * span_s)), rel=EXACT)
