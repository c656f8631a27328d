"""Events that happen at their times, however many: streams, several bursts, and the clients of a closed loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import lab, run

from saqkit import Run, Topology, Workload
from saqkit.app.store import Store
from saqkit.broker import PrivateBroker
from saqkit.clients import Watch
from saqkit.errors import RunError
from saqkit.producing import Producer
from saqkit.queue.building import build_queues
from saqkit.spec.topology import Entry
from saqkit.spec.workload import Arrival, ClosedLoop

FAST = {"kind": "constant", "mean_s": 0.002}


def single(**changes: Any) -> Topology:
    """One job for each user, without a ledger."""
    data = lab(providers__email__latency=FAST, job_types__notify__per_user__database="none", **changes).to_dict()
    return Topology.parse({**data, "entry": [{"job_type": "notify"}]})


async def test_a_stream_of_200_single_users_a_second_keeps_its_times() -> None:
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 200, "duration_s": 3}})
    topology = single()
    events = list(workload.events(topology, 3))
    done = await run(topology, workload=workload, concurrency=20, seed=3)
    rows = done.attempts.assign(number=done.attempts["event"].astype(int)).set_index("number").sort_index()
    assert list(rows.index) == [event.event for event in events]  # one attempt each: ids are in order of arrival
    assert set(rows["users_done"]) == {1}
    late = rows["event_at"].to_numpy() - (np.array([event.at_s for event in events]) - events[0].at_s)
    assert np.median(np.abs(late)) < 0.1  # one after the other they would be several seconds behind
    assert np.abs(late).max() < 1
    assert (rows["queued_at"] - rows["event_at"]).median() < 0.5


async def test_several_bursts_through_entries_that_the_trace_names() -> None:
    topology = Topology.parse(
        {**lab(providers__email__latency=FAST).to_dict(),
         "entry": [{"job_type": "announce", "share": 0.5}, {"job_type": "notify", "share": 0.5}]}
    )  # fmt: skip
    bursts = {"kind": "recorded", "at_s": [0, 0.3, 0.3, 0.6], "users": [250, 3, 201, 2],
              "entries": ["announce", "notify", "announce", "notify"]}  # fmt: skip
    done = await run(topology, workload=Workload.parse({"arrivals": bursts}), seed=1)
    jobs = Counter(zip(done.attempts["event"], done.attempts["job_type"], strict=True))
    assert jobs == {("1", "announce"): 1, ("1", "notify"): 3, ("2", "notify"): 3, ("3", "announce"): 1,
                    ("3", "notify"): 3, ("4", "notify"): 2}  # fmt: skip
    assert done.measures()["users_done"] == 456
    times = done.attempts.groupby("event")["event_at"].first()
    assert [0.29 < times[event] < 1.3 for event in ("2", "3")] == [True, True]


def turns(done: Run, loop: ClosedLoop) -> dict[int, list[tuple[float, float, float]]]:
    """(sent, last job ended, event's number) by client, in order of turns; every turn is there."""
    by_event = done.attempts.groupby(done.attempts["event"].astype(int))
    rows = by_event.agg(sent=("event_at", "min"), ended=("finished_at", "max"))
    found: dict[int, list[tuple[float, float, float]]] = {}
    for event, row in rows.sort_index().iterrows():
        client, turn = (int(str(event)) - 1) % loop.clients + 1, (int(str(event)) - 1) // loop.clients
        assert turn == len(found.setdefault(client, []))
        found[client].append((row["sent"], row["ended"], float(str(event))))
    return found


@pytest.mark.parametrize("fans_out", [False, True])
async def test_a_client_sends_its_next_event_when_the_last_is_drained_and_it_has_thought(fans_out: bool) -> None:
    loop = ClosedLoop.parse({"clients": 3, "think": {"kind": "exponential", "mean_s": 0.1}, "duration_s": 1.5,
                             "users_per_event": 4})  # fmt: skip
    data = single().to_dict()
    if fans_out:
        data["entry"] = [{"job_type": "announce"}]
        data["job_types"]["announce"]["fan_out"] = {"to": "notify", "batch_size": 2, "page_size": 2}
    data["queues"]["archive"] = {"concurrency": 2}
    data["job_types"]["archive"] = {"queue": "archive"}
    data["job_types"]["notify"]["follow_up"] = [{"to": "archive"}]
    done = await run(Topology.parse(data), workload=Workload(arrivals=loop), concurrency=5, seed=4)
    clients = turns(done, loop)
    assert set(clients) == {1, 2, 3}
    assert sum(map(len, clients.values())) > 6
    lags = []
    for client, events in clients.items():
        for turn, (before, after) in enumerate(pairwise(events)):
            due = loop.next_s(4, client, turn, before[1])
            assert due is not None
            lags.append(after[0] - due)  # until the client knows, and the timers
        assert events[0][0] < 0.2
        assert events[-1][0] < 1.5
    assert min(lags) > -0.005  # the two clocks are known to each other to a fraction of a millisecond
    assert float(np.median(lags)) < 0.2
    jobs = done.attempts.groupby("event").size()
    assert set(jobs) == ({1 + 2 + 2} if fans_out else {4 + 4})


def row(event: int, job_type: str, outcome: str = "done", crashes: int = 0) -> dict[str, Any]:
    return {"event": str(event), "job_type": job_type, "outcome": outcome, "crashes": crashes}


def test_an_event_is_drained_with_its_last_job_in_whatever_order_they_are_seen() -> None:
    data = lab().to_dict()
    data["job_types"]["archive"] = {"queue": "notifications"}
    data["job_types"]["notify"]["follow_up"] = [{"to": "archive"}]
    watch = Watch(Topology.parse(data))
    watch.expect(Arrival(7, 0.0, 150, Entry(job_type="announce")))
    assert watch.see([row(7, "notify"), row(7, "archive"), row(7, "notify", "retry")]) == []
    assert watch.see([row(7, "announce", "lost", 1), row(7, "announce")]) == []
    assert watch.see([row(8, "announce")]) == []  # another's
    assert watch.see([row(7, "archive")]) == []  # before the job that led to it
    assert watch.see([row(7, "notify")]) == [7]
    watch.expect(Arrival(9, 0.0, 100, Entry(job_type="announce")))
    assert watch.see([row(9, "announce"), row(9, "notify", "dead")]) == [9]
    watch.expect(Arrival(10, 0.0, 100, Entry(job_type="announce")))
    assert watch.see([row(10, "announce"), row(10, "notify", "lost", 2)]) == []
    assert watch.see([row(10, "notify", "lost", 3)]) == [10]


async def test_events_that_no_broker_takes_end_a_run_unless_a_relay_will_deliver_them(tmp_path: Path) -> None:
    topology, arrivals = single(), [Arrival(n, 0.0, 2, Entry(job_type="notify")) for n in (1, 2)]
    broker = PrivateBroker()
    url = (await asyncio.to_thread(broker.start)).url
    await asyncio.to_thread(broker.stop)
    queues = build_queues(topology, url)
    async with await Store.open(f"sqlite:///{tmp_path}/run.db") as store:
        with pytest.raises(RunError, match="event 1 could not be enqueued: ") as caught:
            await Producer(topology, store, queues, relayed=False).follow(arrivals, time.time())
        assert "\n" not in str(caught.value)
        assert await store.undelivered() == [1, 2]
        later = [Arrival(3, 0.0, 2, Entry(job_type="notify"))]
        await Producer(topology, store, queues, relayed=True).follow(later, time.time())
        assert await store.undelivered() == [1, 2, 3]
    for queue in queues.values():
        await queue.disconnect()
