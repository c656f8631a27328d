"""Traces from CSV files, several bursts, closed loops, and workload files of every kind with what can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqkit.errors import DescriptionError
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import ClosedLoop, Recorded, Workload

SHOP = Topology.parse(
    {
        "name": "shop",
        "topics": {"ordered": {"starts": ["pay"]}},
        "entry": [
            {"topic": "ordered", "share": 0.6, "tenant": "north"},
            {"topic": "ordered", "share": 0.2, "tenant": "south", "priority": "high"},
            {"job_type": "campaign", "share": 0.2},
        ],
        "queues": {"q": {}},
        "job_types": {"pay": {"queue": "q"}, "campaign": {"queue": "q"}},
    }
)


def csv(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at_s,users\n0,5\n2.5,1\n", {"at_s": (0, 2.5), "users": (5, 1)}),
        ("At_S;Users;note\n2.5;1;late\n\n0;5;early\n", {"at_s": (2.5, 0), "users": (1, 5)}),
        ("\ufefftimestamp\n2026-03-01T08:30:00Z\n2026-03-01T08:30:01.5Z\n", {"at_s": (0, 1.5)}),
        ("timestamp\n2026-03-01T08:30:00+01:00\n2026-03-01T07:29:59+00:00\n", {"at_s": (1, 0)}),
        ("timestamp\n2026-03-01 08:30:00\n2026-03-01 09:30:00\n", {"at_s": (0, 3600)}),
        ("timestamp\tentry\n1772353800.25\tordered\n1772353800\tcampaign\n",
         {"at_s": (0.25, 0), "entries": ("ordered", "campaign")}),
    ],
)  # fmt: skip
def test_a_trace_is_read_from_csv(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    path = csv(tmp_path, text)
    trace = Recorded.from_csv(path)
    assert trace == Recorded.parse(expected)
    assert Workload.from_file(path) == Workload(arrivals=trace)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("at_s,users\n0,5\n-1,5\n", 'line 3, at_s: "-1" is wrong (seconds from 0)'),
        ("at_s\n0\nnan\n", 'line 3, at_s: "nan" is wrong (seconds from 0)'),
        ("at_s,users\n0,0\n", 'line 2, users: "0" is wrong (a whole number from 1)'),
        ("at_s,users\n0,1\n3\n", "line 3, users: is missing (each arrival needs one)"),
        ("at_s,timestamp\n0,0\n", "line 1: has two clocks, at_s and timestamp (keep one of them)"),
        ("timestamp\n2026-03-01T08:30:00Z\n2026-03-01T08:30:00\n",
         "line 3, timestamp: has two clocks: times with a zone before, times without a zone here"),
        ("timestamp\n2026-03-01T08:30:00Z\n1772353800\n", "clocks: times with a zone before, Unix seconds here"),
        ("timestamp\n1772353800000\n", '"1772353800000" is wrong (2026-03-01T08:30:00Z or Unix seconds)'),
        ("timestamp\nyesterday\n", 'line 2, timestamp: "yesterday" is wrong'),
        ("timestmp,users\n0,1\n", 'has no column at_s or timestamp, only timestmp, users (did you mean "timestamp"?)'),
        ("users\n1\n", "has no column at_s or timestamp, only users (say when each arrival was)"),
        ("", "has no column at_s or timestamp, only nothing"),
        ("at_s,at_s\n0,1\n", 'has two columns "at_s"'),
        ("at_s\n", "has no arrivals below its head"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_trace_is_named_by_file_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(DescriptionError) as caught:
        Workload.from_file(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"no\.csv: cannot be read: No such file"):
        Recorded.from_csv(tmp_path / "no.csv")
    (tmp_path / "latin.csv").write_bytes(b"at_s,n\xfcmber\n0,1\n")
    with pytest.raises(DescriptionError, match="is not UTF-8 text"):
        Recorded.from_csv(tmp_path / "latin.csv")


def test_a_trace_names_entries_and_entries_of_one_name_share_them() -> None:
    names = ("ordered", "campaign") * 2_000
    workload = Workload(arrivals=Recorded(at_s=tuple(map(float, range(4_000))), entries=names))
    workload.check(SHOP, Deployment())
    events = list(workload.events(SHOP, 1))
    assert [event.entry.topic or event.entry.job_type for event in events] == list(names)
    south = sum(event.entry.tenant == "south" for event in events)
    assert abs(south - 500) < 4.5 * (2_000 * 0.25 * 0.75) ** 0.5
    wrong = Workload(arrivals=Recorded(at_s=(0.0,), entries=("orderd",)))
    with pytest.raises(DescriptionError, match=r'arrivals\.entries\.0: no entry of .* "orderd" \(did you mean'):
        wrong.check(SHOP, Deployment())


def test_entries_follow_their_times_when_a_trace_is_out_of_order() -> None:
    trace = Recorded(at_s=(3.0, 1.0), users=(30, 10), entries=("campaign", "ordered"))
    assert trace.arrivals() == [(1.0, 10, "ordered"), (3.0, 30, "campaign")]
    assert list(trace.times(0)) == [(1.0, 10), (3.0, 30)]


@given(st.integers(1, 50), st.integers(0, 2**40), st.floats(0, 1e4))
def test_turns_of_a_closed_loop_number_their_events_without_gaps(clients: int, seed: int, at_s: float) -> None:
    loop = ClosedLoop.parse({"clients": clients, "think": {"kind": "exponential", "mean_s": 2}, "duration_s": 1e6})
    numbers = [loop.event(client, turn) for turn in range(3) for client in range(1, clients + 1)]
    assert numbers == list(range(1, 3 * clients + 1))
    first = Workload(arrivals=loop).events(SHOP, seed)
    assert [(event.event, event.at_s, event.users) for event in first] == [(n, 0, 1) for n in numbers[:clients]]
    assert at_s < loop.known_s(at_s) < at_s + 0.0101
    next_s = loop.next_s(seed, clients, 1, at_s)
    assert next_s is not None
    assert next_s > at_s
    assert next_s == loop.next_s(seed, clients, 1, at_s)
    assert loop.next_s(seed, clients, 1, 1e6) is None


GOOD = {
    "burst": "users = 5",
    "poisson": "rate_per_s = 2\nduration_s = 10",
    "profile": f"users_per_day = 100\nhourly = {[1] * 24}",
    "recorded": "at_s = [0, 60, 60]\nusers = [5, 5, 1]",
    "closed_loop": 'clients = 3\nthink = { kind = "exponential", mean_s = 1 }\nduration_s = 60',
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_workload_file_of_each_kind_is_read_and_written_back_equal(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.toml"
    path.write_text(f'[arrivals]\nkind = "{kind}"\n{GOOD[kind]}\n\n[[faults]]\nkind = "kill_worker"\nat_s = 1\n')
    workload = Workload.from_file(path)
    assert workload.arrivals.kind == kind
    assert Workload.parse(workload.to_dict()) == workload
    assert next(workload.events(SHOP, 1)).event == 1


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        ("burst", "users = 5", "users = 0", "arrivals.users: should be greater than 0 (given: 0)"),
        ("burst", "users = 5", "user = 5", 'arrivals.user: unknown key "user" (did you mean "users"?)'),
        ("poisson", "rate_per_s = 2", "rate_per_s = -2", "arrivals.rate_per_s: should be greater than 0"),
        ("poisson", "duration_s = 10", "", "arrivals.duration_s: is missing"),
        ("profile", "[1, ", "[", "arrivals.hourly: should have at least 24 items"),
        ("profile", "1, 1, 1", "1, -1, 1", "arrivals.hourly.1: should be greater than or equal to 0 (given: -1)"),
        ("recorded", "[0, 60, 60]", "[0, -60, 60]", "arrivals.at_s.1: should be greater than or equal to 0"),
        ("recorded", "[5, 5, 1]", "[5, 5]", "3 times and 2 numbers of users: one for each time"),
        ("recorded", "users", 'entries = ["a"]\nusers', "3 times and 1 entries: one for each time"),
        ("recorded", "[0, 60, 60]", "[]", "arrivals.at_s: should have at least 1 item"),
        ("closed_loop", "clients = 3", "clients = 0", "arrivals.clients: should be greater than 0 (given: 0)"),
        ("closed_loop", '"exponential"', '"exponentail"', 'arrivals.think.kind: there is no kind "exponentail" (did'),
        ("closed_loop", "mean_s = 1", "mean_s = -1", "arrivals.think.mean_s: should be greater than or equal to 0"),
        ("closed_loop", "duration_s = 60", "", "arrivals.duration_s: is missing"),
        ("closed_loop", '"closed_loop"', '"closedloop"', 'there is no kind "closedloop" (did you mean "closed_loop"?)'),
    ],
)
def test_what_is_wrong_in_a_workload_file_is_said(tmp_path: Path, kind: str, old: str, new: str, said: str) -> None:
    text = f'[arrivals]\nkind = "{kind}"\n{GOOD[kind]}\n'
    assert old in text
    path = tmp_path / "w.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DescriptionError) as caught:
        Workload.from_file(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
