"""Topologies: files read back equal, what ships is what was promised, and every field says where it acts."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import saqkit.spec
from saqkit.errors import DescriptionError
from saqkit.spec.base import Part
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology, load, shipped
from saqkit.spec.workload import Workload

ROOT = Path(__file__).parent.parent.parent

SECONDS = st.floats(1e-3, 1e6)
RETRY = st.one_of(
    st.fixed_dictionaries(
        {"backoff": st.sampled_from(["fixed", "exponential"])},
        optional={"max_attempts": st.integers(1, 50), "delay_s": SECONDS, "factor": SECONDS, "cap_s": SECONDS},
    ),
    st.fixed_dictionaries({"backoff": st.just("list"), "delays_s": st.lists(SECONDS, min_size=1, max_size=4)}),
)
LATENCY = st.one_of(
    st.fixed_dictionaries({"kind": st.sampled_from(["constant", "exponential"]), "mean_s": SECONDS}),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["lognormal", "gamma"]), "mean_s": SECONDS, "cv": st.floats(0.1, 3)}
    ),
    st.fixed_dictionaries({"kind": st.just("empirical"), "values_s": st.lists(SECONDS, min_size=1, max_size=5)}),
    st.builds(lambda p50_s, more_s: {"kind": "percentiles", "p50_s": p50_s, "p95_s": p50_s + more_s}, SECONDS, SECONDS),
    st.builds(
        lambda mean_s, share: {
            "kind": "mixture",
            "weights": [share, 1 - share],
            "components": [{"kind": "constant", "mean_s": mean_s}, {"kind": "percentiles", "p50_s": 1.0, "max_s": 5.0}],
        },
        SECONDS,
        st.floats(0.01, 0.99),
    ),
)
LIMIT = st.fixed_dictionaries(
    {"limit": st.integers(1, 1000)}, optional={"period_s": SECONDS, "unit": st.sampled_from(["jobs", "users"])}
)


@st.composite
def topologies(draw: st.DrawFn) -> dict[str, Any]:
    """A topology as a file says it: job types in a row, whose edges lead to later ones only."""
    queues = [f"q{n}" for n in range(draw(st.integers(1, 3)))]
    jobs = [f"job.{n}" for n in range(draw(st.integers(1, 5)))]
    starter = draw(st.booleans()) and len(jobs) > 1
    job_types: dict[str, Any] = {}
    for n, name in enumerate(jobs):
        job: dict[str, Any] = {"queue": draw(st.sampled_from(queues)), "retry": draw(RETRY)}
        job["priority"] = draw(st.sampled_from(["critical", "high", "normal", "low", 1, 2, 3, 4]))
        if n == 0 and starter:
            job["fan_out"] = {"to": draw(st.sampled_from(jobs[1:])), "batch_size": draw(st.integers(1, 500))}
        else:
            job["send_concurrency"] = draw(st.integers(1, 20))
            job["per_user"] = {"provider": draw(st.sampled_from(["mail", "none"])), "cpu_us": draw(SECONDS)}
            later = jobs[n + 1 :]
            job["follow_up"] = (
                [{"to": to} for to in draw(st.lists(st.sampled_from(later), max_size=2, unique=True))] if later else []
            )
        job_types[name] = job
    served = {job["queue"] for job in job_types.values() if "fan_out" not in job}
    limits = {name: draw(LIMIT) for name in queues if draw(st.booleans())}
    for name, limit in limits.items():
        limit["unit"] = limit.get("unit", "jobs") if name in served else "jobs"
    made = {name: job.get("fan_out", {}).get("to", name) for name, job in job_types.items()}
    starts = st.lists(st.sampled_from(jobs), min_size=1, max_size=2, unique_by=lambda name: made[name])
    shares = draw(st.sampled_from([[1.0], [0.25, 0.75], [0.1, 0.2, 0.7]]))
    entry = [{"share": s, **draw(st.sampled_from([{"topic": "made"}, {"job_type": jobs[0]}]))} for s in shares]
    return {
        "name": "generated",
        "entry": entry,
        "topics": {"made": {"starts": draw(starts)}},
        "queues": {name: {"rate_limit": limits.get(name, "none")} for name in queues},
        "job_types": job_types,
        "providers": {"mail": {"latency": draw(LATENCY), "permanent_share": draw(st.floats(0, 1))}},
    }


def as_toml(value: Any) -> str:
    """A value as TOML: enough of a writer to show that what is generated can be said in a file."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {as_toml(inner)}' for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


@given(topologies())
def test_a_topology_reads_back_equal_from_its_dict(data: dict[str, Any]) -> None:
    topology = Topology.parse(data)
    assert Topology.parse(topology.to_dict()) == topology


@given(data=topologies())
def test_a_topology_reads_equal_from_toml(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("t") / "generated.toml"
    path.write_text("\n".join(f"{key} = {as_toml(value)}" for key, value in data.items()))
    assert load(path) == Topology.parse(data)


@given(topologies(), st.data())
def test_an_edge_back_is_always_refused(data: dict[str, Any], draw: st.DataObject) -> None:
    first = next(name for name, job in data["job_types"].items() if "fan_out" not in job)
    data["job_types"][first]["follow_up"] = [{"to": first}]
    with pytest.raises(DescriptionError, match="cycle"):
        Topology.parse(data)


def test_school_events_is_as_its_makers_describe_it() -> None:
    topology = load("school-events")
    queue, notify = topology.queues["notifications"], topology.job_types["notify"]
    assert queue.concurrency == 5
    assert queue.rate_limit is not None
    assert (queue.rate_limit.limit, queue.rate_limit.period_s, queue.rate_limit.unit) == (10, 1.0, "jobs")
    assert queue.dead_retention_s == 7 * 24 * 3600
    assert notify.retry.max_attempts == 3
    assert notify.retry.delays_s == (5, 25, 125)
    assert (notify.retry.schedule(), notify.retry.unused()) == ([5, 25], [125])
    fan_out = topology.job_types["announce"].fan_out
    assert fan_out is not None
    assert (fan_out.to, fan_out.batch_size) == ("notify", 100)
    email = topology.providers["email"]
    assert (email.latency.kind, email.latency.mean_s, email.permanent_share) == ("lognormal", 0.075, 0.001)
    assert email.temporary_share == 0
    assert topology.entry_queue == "notifications"
    assert topology.starts(topology.entry[0]) == ("announce",)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_topology_is_valid_and_bears_its_file_name(name: str) -> None:
    topology = load(name)
    assert topology.name == name
    assert topology.title
    assert topology.story


def test_the_laboratory_has_no_limit_and_its_knobs() -> None:
    lab = load(ROOT / "data" / "lab.toml")
    assert all(queue.rate_limit is None for queue in lab.queues.values())
    assert lab.job_types["notify"].per_user.cpu_us == 0
    assert lab.providers["email"].temporary_share == 0


def test_a_batch_size_reaches_every_fan_out_and_nothing_else() -> None:
    before = load("school-events")
    after = before.with_batch_size(20)
    changed = before.to_dict()
    changed["job_types"]["announce"]["fan_out"]["batch_size"] = 20
    assert after.to_dict() == changed


def test_none_stands_for_no_value_wherever_there_may_be_none() -> None:
    data = load("school-events").to_dict()
    data["queues"]["notifications"]["rate_limit"] = "none"
    data["job_types"]["notify"]["retry"]["cap_s"] = "none"
    data["providers"]["email"]["url"] = "none"
    topology = Topology.parse(data)
    assert topology.queues["notifications"].rate_limit is None
    assert topology.job_types["notify"].retry.cap_s is None
    assert topology.providers["email"].url is None
    assert Deployment.parse({"concurrency": "none", "cores": "none"}) == Deployment()


def test_a_deployment_counts_processes_and_slots() -> None:
    topology = load("school-events")
    assert Deployment(workers=3).processes(topology) == [("notifications",)] * 3
    groups = Deployment.parse({"groups": [{"queues": ["notifications"], "processes": 2}]})
    assert groups.processes(topology) == [("notifications",)] * 2
    assert Deployment().slots(topology, "notifications") == 5
    assert Deployment(concurrency=7).slots(topology, "notifications") == 7
    assert Deployment(concurrency={"notifications": 9}).slots(topology, "notifications") == 9
    assert Deployment(concurrency={"other": 9}).slots(topology, "notifications") == 5


def parts() -> list[type[Part]]:
    """Every part of a description."""
    for module in pkgutil.iter_modules(saqkit.spec.__path__):
        importlib.import_module(f"saqkit.spec.{module.name}")
    found, queue = [], [Part]
    while queue:
        for part in queue.pop().__subclasses__():
            queue.append(part)
            hidden = part.__name__.startswith("_") or part.__name__ == "Taking"  # its fields are those of Queue
            if part.__module__.startswith("saqkit.spec.") and not hidden:
                found.append(part)
    return sorted(found, key=lambda part: part.__name__)


REAL_ONLY = {
    "Queue.done_retention_s",
    "Queue.dead_retention_s",
    "Queue.dead_cap",
    "Provider.url",
    "Provider.sender",
    "Deployment.broker",
    "Deployment.database",
    "ScheduledEntry.name",
    "ScheduledEntry.title",
    "ScheduledEntry.body",
    "ScheduledEntry.missed",
    "ScheduledEntry.late_s",
    "ScheduledEntry.most_missed",
}


def test_only_these_fields_act_in_real_runs_only_and_each_says_why() -> None:
    marked = {}
    for part in parts():
        for name, field in part.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "acts_in" in extra:
                assert extra["acts_in"] == "real"
                marked[f"{part.__name__}.{name}"] = str(extra.get("reason", ""))
    assert set(marked) == REAL_ONLY
    assert all(len(reason.split()) >= 4 for reason in marked.values())


def test_the_schema_tells_which_fields_act_in_real_runs_only() -> None:
    for model in (Topology, Deployment, Workload):
        text = str(model.model_json_schema())
        assert ("'acts_in': 'real'" in text) == (model is not Workload)


def section(page: str, part: str) -> str:
    match = re.search(rf"^## [^\n]*`{part}`.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, f"docs/topology.md has no section for {part}"
    return match[0]


DOCUMENTED = [part.__name__ for part in parts() if part.__name__ not in ("Probe", "QueueProbe")]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_reference_page_has_every_field_with_its_default(name: str) -> None:
    part = next(part for part in parts() if part.__name__ == name)
    text = section((ROOT / "docs" / "topology.md").read_text(encoding="utf-8"), name)
    for field_name, field in part.model_fields.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{field_name}` |")), None)
        assert row is not None, f"{name}.{field_name} is not in docs/topology.md"
        default = row.split("|")[3].strip().strip("`")
        if field.is_required():
            assert default == "required", f"{name}.{field_name}"
        elif isinstance(field.default, bool | int | float) and not hasattr(field.default, "name"):
            assert float(default.split()[0]) == field.default, f"{name}.{field_name}"
        elif isinstance(field.default, str):
            assert default == f'"{field.default}"', f"{name}.{field_name}"
        elif field.default is None:
            assert default == "none", f"{name}.{field_name}"


def test_the_reference_page_has_a_key_for_no_field_that_is_not_there() -> None:
    page = (ROOT / "docs" / "topology.md").read_text(encoding="utf-8")
    known = {part.__name__: set(part.model_fields) for part in parts()}
    for name in DOCUMENTED:
        keys = set(re.findall(r"^\| `(\w+)` \|", section(page, name), re.MULTILINE))
        assert keys == known[name]


def test_the_example_of_the_reference_page_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "topology.md").read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert example
    (tmp_path / "example.toml").write_text(example[1], encoding="utf-8")
    assert load(tmp_path / "example.toml").name == "shop"
