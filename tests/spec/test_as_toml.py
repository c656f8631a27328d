"""A description that is written as TOML reads back equal."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_topology import topologies

from saqkit.spec.as_toml import WIDTH, as_toml
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import SHIPPED, Topology, load, shipped
from saqkit.spec.workload import Workload


@given(topologies())
def test_any_topology_reads_back_equal(data: dict[str, Any]) -> None:
    topology = Topology.parse(data)
    assert Topology.parse(tomllib.loads(as_toml(topology))) == topology


@pytest.mark.parametrize("name", shipped())
def test_what_ships_reads_back_equal_and_what_is_at_its_default_is_left_out(name: str) -> None:
    text = as_toml(load(name))
    assert Topology.parse(tomllib.loads(text)) == load(name)
    source = (SHIPPED / f"{name}.toml").read_text(encoding="utf-8")
    for word in ("done_retention_s", '= "none"'):
        assert (word in text) == (word in source)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_reads_back_equal(text: str) -> None:
    topology = load("school-events").model_copy(update={"title": text, "story": f'"{text}\\'})
    read = Topology.parse(tomllib.loads(as_toml(topology)))
    assert (read.title, read.story) == (topology.title, topology.story)


@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=200),
    st.sampled_from([(), ({"kind": "kill_worker", "at_s": 3.5, "worker": 1},)]),
)
def test_workloads_read_back_equal_on_lines_that_can_be_read(at_s: list[float], faults: Any) -> None:
    workload = Workload.parse({"arrivals": {"kind": "recorded", "at_s": sorted(at_s)}, "faults": faults})
    text = as_toml(workload)
    assert Workload.parse(tomllib.loads(text)) == workload
    assert max(map(len, text.splitlines())) <= WIDTH


def test_deployments_and_what_is_none_against_the_default() -> None:
    deployment = Deployment.parse({"groups": [{"queues": ["a.b"], "processes": 2}], "concurrency": {"a.b": 3}})
    assert Deployment.parse(tomllib.loads(as_toml(deployment))) == deployment
    assert as_toml(Deployment()) == "\n"
    free = Topology.parse({**load("school-events").to_dict(), "title": ""})
    assert "title" not in as_toml(free)
