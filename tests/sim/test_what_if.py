"""`sim.what_if`: scenarios against a base on the same draws, as a table and as a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import pytest
from simulated_run import lab

import sim
from saqkit.cli import main
from saqkit.errors import DescriptionError, UsageError
from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Burst, KillWorker, Poisson, ProviderOutage, Workload
from sim.changes import BUILT_IN, Change, applied
from sim.fit.profile import Profile, ProviderProfile
from sim.running.scenario import Scenario

SMALL: dict[str, Any] = {"users": 400, "concurrency": 2, "replications": 3}


def failing() -> Topology:
    return lab(providers__email__temporary_share=0.02)


@pytest.fixture(scope="module")
def found() -> sim.WhatIf:
    return sim.what_if(failing(), users=400, workers=3, concurrency=1, replications=4)


def difference(result: sim.WhatIf, name: str, measure: str = "makespan_s") -> float:
    return float(result.summary().loc[(name, measure), "difference"])


def test_without_changes_what_planners_ask_is_tried(found: sim.WhatIf) -> None:
    assert list(found.scenarios) == list(BUILT_IN)
    assert found.left_out == {}
    assert difference(found, "half the latency") < 0
    assert difference(found, "double the users") > 0
    assert difference(found, "two workers killed") > 0
    assert difference(found, "two workers fewer") > 0
    assert difference(found, "outage of 10 min", "users_failed") > 0
    assert difference(found, "retries tripled", "retries") > 0


def test_the_table_has_each_measure_with_its_difference_and_the_bottleneck(found: sim.WhatIf) -> None:
    table = found.summary()
    assert list(table.columns) == ["base", "value", "difference", "lo", "hi", "relative", "bottleneck"]
    assert table.index.names == ["scenario", "measure"]
    assert list(table.loc["half the latency"].index) == list(trace.MEASURES)
    plain = table[table["difference"].notna()]
    assert (plain["value"] - plain["base"] - plain["difference"]).abs().max() < 1e-9
    assert ((plain["lo"] <= plain["difference"]) & (plain["difference"] <= plain["hi"])).all()
    assert set(table["bottleneck"]) <= {"slots", "loop", "cores", "broker", "database", "provider", "rate_limit"}


def test_a_paired_interval_is_narrower_than_that_of_two_separate_means() -> None:
    result = sim.what_if(failing(), {"slower": {"providers.email.latency.mean_s": 0.021}}, users=1000, replications=6)
    row = result.summary().loc[("slower", "latency_mean_s")]
    base, slower = result.base.measures["latency_mean_s"], result.scenarios["slower"].measures["latency_mean_s"]
    separate = (base["mean_hi"] - base["mean"]) + (slower["mean_hi"] - slower["mean"])
    assert (row["hi"] - row["lo"]) / 2 < separate / 3
    assert row["lo"] > 0
    assert row["relative"] == pytest.approx(0.05, abs=0.01)


def test_nothing_but_the_change_differs_from_the_base() -> None:
    result = sim.what_if(lab(), {"longer leases": {"queues.notifications.lease_s": 20.0}}, **SMALL)
    table = result.summary()
    assert (table["difference"].abs().max(), table["lo"].min(), table["hi"].max()) == (0, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"deployment.workers": 2},
        {"workers": 2},
        Deployment(workers=2, concurrency=2),
        lambda base: replace(base, deployment=Deployment(workers=2, concurrency=2)),
    ],
    ids=["path", "short", "part", "function"],
)
def test_a_change_may_be_paths_a_part_or_a_function(change: Change) -> None:
    result = sim.what_if(lab(), {"one more": change}, **SMALL)
    assert result.scenarios["one more"].settings["workers"] == 2
    assert difference(result, "one more") < 0


def test_users_batch_size_workload_and_topology_can_change_too() -> None:
    changes: dict[str, Change] = {
        "more": {"users": 500},
        "more by path": {"workload.arrivals.users": 500},
        "smaller": {"batch_size": 50, "concurrency": 4},
        "stream": Workload(arrivals=Poisson(rate_per_s=1, duration_s=5, users_per_event=50)),
        "other": failing(),
    }
    result = sim.what_if(lab(), changes, users=400, replications=2)
    assert result.scenarios["more"].settings["users"] == result.scenarios["more by path"].settings["users"] == 500
    settings = result.scenarios["smaller"].settings
    assert (settings["batch_size"], settings["concurrency"]) == (50, 4)
    assert result.scenarios["stream"].scenario.workload.arrivals.kind == "poisson"
    assert result.scenarios["other"].scenario.topology.providers["email"].temporary_share == 0.02


def test_stock_saq_is_a_change_like_any_other() -> None:
    short = {"entry": [{"job_type": "notify"}], "providers.email.latency.mean_s": 0.001}
    topology = override(lab(), short | {"job_types.notify.per_user.database": "none"})  # what counts is the round trips
    result = sim.what_if(topology, {"stock": {"queue": "stock"}}, **SMALL)
    assert result.scenarios["stock"].scenario.queue == "stock"
    assert difference(result, "stock") > 0
    back = sim.what_if(topology, {"ours": {"queue": "saqkit"}}, queue="stock", **SMALL)
    assert difference(back, "ours") < 0


def base(topology: Topology, **fields: Any) -> Scenario:
    given: dict[str, Any] = {"deployment": Deployment(), "workload": Workload.burst(100), "profile": Profile.nominal()}
    return Scenario(topology, seed=0, **{**given, **fields})


def test_built_in_changes_say_what_they_do() -> None:
    described = base(failing(), deployment=Deployment(workers=4))
    parts = [{"kind": "constant", "mean_s": 0.2}, {"kind": "empirical", "values_s": [0.1, 0.4]}]
    latency = {"kind": "mixture", "weights": [0.5, 0.5], "components": parts}
    mixed = base(lab(providers__email__latency=latency))
    halved = applied("x", "half the latency", mixed, 9.0).topology.providers["email"].latency
    assert halved.mean_s == pytest.approx(mixed.topology.providers["email"].latency.mean_s / 2)
    tripled = applied("x", "retries tripled", described, 9.0).topology.providers["email"]
    assert tripled.temporary_share == pytest.approx(0.06)
    assert applied("x", "two workers fewer", described, 9.0).deployment.workers == 2
    killed = applied("x", "two workers killed", described, 9.0).workload.faults
    assert killed == (KillWorker(at_s=3.0, worker=0), KillWorker(at_s=3.0, worker=1))
    assert len(applied("x", "two workers killed", base(failing()), 9.0).workload.faults) == 1
    out = applied("x", "outage of 10 min", described, 9.0).workload.faults
    assert out == (ProviderOutage(at_s=3.0, duration_s=600.0, provider="email"),)
    arriving = applied("x", "double the users", described, 9.0).workload.arrivals
    assert isinstance(arriving, Burst)
    assert arriving.users == 200


def test_a_provider_that_the_profile_measured_is_changed_there() -> None:
    topology = lab(providers__email__kind="smtp", providers__email__url="smtp://127.0.0.1:25")
    measured = ProviderProfile(latency={"kind": "constant", "mean_s": 0.3}, temporary_share=0.1, permanent_share=0.0,
                               samples=100)  # type: ignore[arg-type]  # fmt: skip
    known = Profile.nominal().model_copy(update={"providers": {"email": measured}})
    here = base(topology, profile=known)
    assert applied("x", "half the latency", here, 1.0).profile.providers["email"].latency.mean_s == 0.15
    assert applied("x", "retries tripled", here, 1.0).profile.providers["email"].temporary_share == pytest.approx(0.3)


def test_built_in_changes_that_change_nothing_are_left_out_and_said() -> None:
    result = sim.what_if(lab(), users=100, replications=2)
    assert result.left_out == {
        "two workers fewer": "there are not three workers a host of which two could be missing",
        "retries tripled": "no provider has temporary failures",
    }
    assert "left out: retries tripled: no provider has temporary failures" in repr(result)


def test_the_result_is_shown_the_same_every_time(found: sim.WhatIf) -> None:
    first, again = (sim.what_if(failing(), ["half the latency"], users=200, replications=2) for _ in range(2))
    assert repr(again) == repr(first)
    assert again.summary().equals(first.summary())
    assert repr(found).startswith("WhatIf(lab: 400 users, 3 workers, concurrency 1)\n  base: makespan_s ")
    assert "double the users" in found._repr_html_()
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_tornado_has_a_bar_per_scenario_the_longest_on_top(found: sim.WhatIf) -> None:
    ax = found.plot()
    widths = [bar.get_width() for bar in ax.containers[0]]  # type: ignore[union-attr]
    names = [label.get_text() for label in ax.get_yticklabels()]
    table = found.summary()["difference"].unstack()["makespan_s"]
    assert dict(zip(names, widths, strict=True)) == pytest.approx(table.to_dict())
    assert sorted(map(abs, widths)) == pytest.approx(list(map(abs, widths)))
    assert ax.get_xlabel().startswith("time to drain in seconds, base ")
    assert found.plot("users_failed").get_xlabel() == "users failed, base 0"
    plt.close("all")
    with pytest.raises(UsageError, match="there is no measure"):
        found.plot("makespan")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"same": {"workers": 1}}, DescriptionError, 'scenario "same" changes nothing'),
        ({"same": lambda base: base}, DescriptionError, 'scenario "same" changes nothing'),
        (["retries tripled"], DescriptionError, '"retries tripled" changes nothing: no provider has temporary'),
        ({"x": {"providers.emial.latency.mean_s": 1}}, DescriptionError, 'did you mean "email"'),
        ({"x": {"deployment.worker": 2}}, DescriptionError, 'did you mean "workers"'),
        ({"x": {"workload.arrivals.user": 2}}, DescriptionError, 'did you mean "users"'),
        ({"x": {"queue": "stok"}}, DescriptionError, 'did you mean "stock"'),
        ({"x": {"workers": 0}}, DescriptionError, "workers"),
        (["double users"], DescriptionError, 'did you mean "double the users"'),
        ("double the users", UsageError, "a list of names"),
        ({}, UsageError, "none is given"),
        ({"x": 3}, UsageError, "3 is no change"),
        ({"x": lambda base: None}, UsageError, "returned NoneType"),
    ],
)
def test_changes_that_are_none_are_refused_in_one_line(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        sim.what_if(lab(), changes, users=20, replications=2)
    assert "\n" not in str(caught.value)


def test_a_stream_is_compared_in_its_steady_part_and_one_that_outruns_the_system_is_said() -> None:
    topology = lab(entry=[{"job_type": "notify"}], queues__notifications__concurrency=1)
    calm = Workload(arrivals=Poisson(rate_per_s=20, duration_s=25))
    result = sim.what_if(topology, ["half the latency", "double the users"], workload=calm, replications=3)
    assert result.base.steady is not None
    row = result.summary().loc[("half the latency", "latency_p95_s")]
    assert row["base"] == pytest.approx(result.base.steady["latency_p95_s"]["mean"])
    assert row["hi"] < 0
    assert "unstable: the backlog of notifications grows" in repr(result)
    assert result.to_dict()["scenarios"]["half the latency"]["verdict"].startswith("stable")
    assert result.plot().get_xlabel().startswith("latency p95 in seconds")
    plt.close("all")


def test_a_stream_too_long_to_be_played_has_no_differences_but_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.running.replicating.LONG", 500)
    monkeypatch.setattr("sim.running.replicating.PILOTS", (200, 300))
    topology = lab(entry=[{"job_type": "notify"}], queues__notifications__concurrency=1)
    calm = Workload(arrivals=Poisson(rate_per_s=10, duration_s=10))
    longer = {"workload.arrivals.rate_per_s": 100.0, "workload.arrivals.duration_s": 100.0}
    result = sim.what_if(topology, {"longer": longer}, workload=calm, replications=2)
    assert result.summary().loc["longer", ["value", "difference", "lo", "hi"]].isna().all(axis=None)
    assert "unstable" in repr(result)
    json.dumps(result.to_dict(), allow_nan=False)
    with pytest.raises(UsageError, match="needs a difference to draw"):
        result.plot()


def test_one_replication_has_no_interval() -> None:
    with pytest.raises(UsageError, match="from 2 on"):
        sim.what_if(lab(), users=20, replications=1)


BASE = ["school-events", "--users", "200", "--workers", "3", "--profile", "nominal", "--replications", "2"]
COMMAND = ["what-if", *BASE]


def test_the_command_says_what_the_function_finds(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--change", "quick:providers.email.latency.mean_s=0.01", "--change", "quick:deployment.workers=4",
               "--change", "double the users"]  # fmt: skip
    assert main([*COMMAND, *changes, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["base", "scenarios", "left_out"]
    assert list(said["scenarios"]) == ["quick", "double the users"]
    quick = said["scenarios"]["quick"]["makespan_s"]
    assert quick["difference"] == pytest.approx(quick["value"] - said["base"]["makespan_s"])
    assert quick["difference"] < 0
    assert main([*COMMAND, *changes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["base", "quick", "double the users"]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("x:deployment.worker=4", 'did you mean "workers"?'),
        ("x:deployment.workers=3", 'scenario "x" changes nothing'),
        ("retries triple", 'did you mean "retries tripled"?'),
        ("deployment.workers=4", "has no name (write NAME:deployment.workers=4)"),
        ("x:", "is no change (write NAME:KEY=VALUE"),
        ("x:workers", "is no override (write KEY=VALUE"),
    ],
)
def test_the_command_refuses_a_wrong_change_in_one_line(
    change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--change", change]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
