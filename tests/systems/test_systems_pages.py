"""The page of each system: its diagram is that of its topology, its claims are all there, its commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import sim
from saqkit.cli.commands import commands
from saqkit.errors import SaqkitError
from saqkit.spec.overriding import override
from saqkit.spec.topology import load, shipped

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SYSTEMS = {one["name"]: one for one in tomllib.loads((DOCS / "systems.toml").read_text(encoding="utf-8"))["system"]}
HEADINGS = ["The diagram", "Running it", "What its makers claimed, and what is true", "What is not reproduced"]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("systems_pages", DOCS / "systems_pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name: str) -> str:
    return (DOCS / f"{name.replace('-', '_')}.md").read_text(encoding="utf-8")


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every command of saqkit in the blocks of a page, and of those with options in its lines."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(saqkit [a-z-]+ [^`\n]*--[^`\n]+)`", text)
    yield from (shlex.split(line, comments=True) for line in lines if line.strip())


@pytest.mark.parametrize("name", shipped())
def test_the_page_is_as_it_is_made_and_has_its_parts(made: ModuleType, name: str) -> None:
    assert made.written(page(name), name) == page(name), "make systems writes it anew"
    found = re.findall(r"^## (.+)$", page(name), re.MULTILINE)
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS


@pytest.mark.parametrize("name", shipped())
def test_the_diagram_has_all_that_exists_and_no_arrow_to_nowhere(made: ModuleType, name: str) -> None:
    topology, drawn = load(name), made.diagram(load(name))
    nodes = re.findall(r'^ +(\w+)[\[(]+"([^"]*)"[\])]+$', drawn, re.MULTILINE)
    labels = "\n".join(label for _, label in nodes)
    for one in (*topology.job_types, *topology.providers, *topology.topics):
        assert re.search(rf"^(.*<br/>)?{re.escape(one)}(<br/>.*|: [\d.]+ %.*)?$", labels, re.MULTILINE), one
    assert re.findall(r'subgraph \w+ \["queue (\S+):', drawn) == [*topology.queues]
    ids = {node for node, _ in nodes}
    assert len(ids) == len(nodes)
    arrows = re.findall(r'^  ([\w& ]+?) (?:-->|-\.->)(?:\|"[^"]*"\|)? ([\w& ]+)$', drawn, re.MULTILINE)
    assert len(arrows) == drawn.count("->")
    assert {end for pair in arrows for side in pair for end in side.split(" & ")} <= ids
    assert drawn.count("subgraph") == len(re.findall(r"^  end$", drawn, re.MULTILINE))


def test_a_diagram_follows_its_topology(made: ModuleType) -> None:
    changed = override(
        load("shop"),
        {
            "queues.payments.rate_limit": {"limit": 7, "period_s": 2.0},
            "job_types.payment.priority": "critical",
            "providers.sms.latency.mean_s": 0.4,
        },
    )
    drawn = made.diagram(changed)
    assert '["queue payments: 10 slots a process, at most 7 jobs in 2 s"]' in drawn
    assert 'job_payment["payment<br/>critical priority"]' in drawn
    assert 'by_sms[["sms<br/>0.4 s"]]' in drawn
    assert 'job_payment -.->|"when done"| job_order_sms' in drawn


@pytest.mark.parametrize("name", shipped())
def test_every_claim_stands_on_its_page_with_what_is_true(name: str) -> None:
    rows = dict(re.findall(r"^\| (\d{3}\.\d+) \| (.+) \|$", page(name), re.MULTILINE))
    for row in SYSTEMS[name]["row"]:
        if row.get("is") in ("claim", "judged"):
            assert row["id"] in rows, f"{row['id']} is a claim, and not on the page"
            claimed, _, true = rows[row["id"]].partition(" | ")
            assert claimed == row["what"]
            assert true.startswith(("holds", "fails") if row["is"] == "judged" else "not judged yet")


@pytest.mark.parametrize("name", shipped())
def test_what_a_page_tells_to_type_exists(name: str) -> None:
    lines = list(command_lines(page(name)))
    for words in lines:
        assert words[0] == "saqkit", words
        parse(words[1:])
    assert {"show", "demo", "measure", "predict", "plan"} <= {words[1] for words in lines}
    assert all(name in words for words in lines if words[1] in ("show", "demo", "measure", "predict", "plan"))


def parse(words: list[str]) -> None:
    """Read a command line as the command line does, without carrying it out."""
    with click.Context(commands, info_name="saqkit") as context:
        _, command, rest = commands.resolve_command(context, list(words))
        assert command is not None
        while isinstance(command, click.Group):
            _, command, rest = command.resolve_command(context, rest)
            assert command is not None
        command.make_context(command.name, rest, parent=context)


@pytest.mark.parametrize("name", shipped())
def test_what_a_page_tells_to_set_exists(name: str) -> None:
    for key, value in re.findall(r"--set ([\w.-]+)=([\w.]+)", page(name)):
        assert override(load(name), {key: value}) != load(name), key


@pytest.mark.parametrize("wrong", ["predct shop", "show shop --user 3", "measure shop --users many", "plan shop"])
def test_a_command_that_does_not_exist_would_be_found(wrong: str) -> None:
    with pytest.raises((click.ClickException, SaqkitError)):
        parse(shlex.split(wrong))


def test_the_school_events_figures_are_the_models() -> None:
    """To within what two versions of the model may differ by, the seconds that the page names."""
    profile = sim.Profile.load(ROOT / "data" / "profile-quickstart.json")
    users = {"000.14": 100, "000.15": 1_000, "000.16": 10_000, "000.17": 100_000}
    rows = dict(re.findall(r"^\| (000\.1[4-7]) \| (.+) \|$", page("school-events"), re.MULTILINE))
    predicted = sim.predict(
        load("school-events"), users=[*users.values()], workers=1, profile=profile, keep="summary", progress=False
    )
    for (row, many), found in zip(users.items(), predicted, strict=True):
        said = re.search(r"([\d.,]+) s\b", rows[row].partition(" | ")[2])
        assert said, rows[row]
        seconds = float(said[1].replace(",", ""))
        assert found.settings["users"] == many
        assert seconds == pytest.approx(found.measures["makespan_s"]["mean"], rel=0.05), row
        low, high = {"000.14": (5, 10), "000.15": (30, 60), "000.16": (120, 180), "000.17": (1200, 1800)}[row]
        assert rows[row].partition(" | ")[2].startswith("holds" if low <= seconds <= high else "fails")


@pytest.mark.parametrize("name", shipped())
def test_links_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page(name)):
        file = DOCS / target if target else DOCS / f"{name.replace('-', '_')}.md"
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor
