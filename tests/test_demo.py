"""The demonstration, whole: real runs, a prediction that comes first, a picture and a page that need nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import pytest

import saqkit
import sim
from saqkit.cli.demonstration import DemoResult, demonstrate
from saqkit.cli.fitting_the_minute import fit_the_minute
from saqkit.errors import UsageError
from saqkit.spec.topology import Topology
from saqkit.spec.trace import MEASURES

DATA = Path(__file__).parent.parent / "data"
USERS, CALIBRATION = 200, 100


@dataclass(frozen=True)
class Told:
    result: DemoResult
    lines: list[str]
    progress: list[int]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """One demonstration of the laboratory, told once for all tests of this file."""
    lines: list[str] = []
    progress: list[int] = []
    demonstration = demonstrate(
        saqkit.load(DATA / "lab.toml"),
        users=USERS,
        folder=tmp_path_factory.mktemp("demo"),
        seed=7,
        echo=lines.append,
        calibration_users=CALIBRATION,
        progress=lambda done, of, what: progress.append(len(lines)),
    )
    result = asyncio.run(demonstration)
    return Told(result, lines, progress)


def test_the_prediction_is_told_before_the_real_run_begins(told: Told) -> None:
    predicted = next(n for n, line in enumerate(told.lines) if "Predicted before it happens" in line)
    real = next(n for n, line in enumerate(told.lines) if "The real run" in line)
    mean = told.result.prediction.combinations[0].measures["makespan_s"]["mean"]
    assert f"{mean:.2f} s to drain" in told.lines[predicted + 1]
    assert predicted < predicted + 1 < real
    # While the larger run went on, the prediction had been told; while the small one did, it had not.
    assert {n > predicted + 1 for n in told.progress} == {True, False}
    assert told.result.predicted_at < told.result.began_at


def test_what_is_compared_is_the_prediction_that_was_told(told: Told) -> None:
    written = told.result.prediction.combinations[0].measures
    compared = told.result.comparison.to_dict()
    assert {name: compared[name]["predicted"] for name in MEASURES} == {
        name: written[name]["mean"] for name in MEASURES
    }
    assert not told.result.comparison.in_sample


def test_both_runs_are_real_and_serve_everybody(told: Told) -> None:
    small, large = told.result.calibration.measures(), told.result.run.measures()
    assert (small["users_done"], small["users_failed"]) == (CALIBRATION, 0)
    assert (large["users_done"], large["users_failed"], large["attempts"]) == (USERS, 0, 1 + USERS / 4)
    assert {worker["worker"] for worker in told.result.run.workers} == {"worker-0", "worker-1"}
    assert told.result.run.seed != told.result.calibration.seed


def test_the_screen_shows_a_row_per_measure_and_the_paths(told: Told) -> None:
    text = "\n".join(told.lines)
    for name in ("makespan_s", "throughput_users_per_s", "latency_p95_s", "users_done"):
        assert re.search(rf"^ +{name} .*\[.+, .+\] +[-+]\d+\.\d% +(yes|no)$", text, re.MULTILINE), name
    assert str(told.result.picture) in text
    assert str(told.result.report) in text
    assert "batches of 4 users instead of 100" in text
    assert max(map(len, text.splitlines())) < 200


def test_the_picture_is_a_png_of_the_stated_size_with_something_on_it(told: Told) -> None:
    assert told.result.picture.name == "saqkit-demo-lab.png"
    pixels = matplotlib.image.imread(told.result.picture)
    assert pixels.shape[:2] == (960, 1200)
    colours = {tuple(round(float(c) * 255) for c in pixel[:3]) for pixel in pixels[::3, ::3].reshape(-1, 4)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours, "the predicted or the measured line is missing"


def test_the_report_holds_everything_and_asks_nobody(told: Told) -> None:
    page = told.result.report.read_text(encoding="utf-8")
    assert told.result.report.name == "saqkit-demo-lab.html"
    assert [name for name in MEASURES if f"<td>{name}</td>" not in page] == []
    assert f"an error of {told.result.comparison.to_dict()['makespan_s']['error']:+.1%}" in page
    assert page.count('src="data:image/png;base64,') == 1
    assert "└─ announce" in page
    assert "batches of 4 users instead of 100" in page
    assert "the provider is simulated" in page
    assert re.findall(r"https?:|//[\w.-]+\.\w|<script|<link|@import|url\(", page) == []
    assert "$" not in re.sub(r"base64,[^\"]+", "", page), "a place of the template was left empty"


def test_the_result_is_plain_json(told: Told) -> None:
    found = json.loads(json.dumps(told.result.to_dict(), allow_nan=False))
    assert set(found) == {
        "topology", "overrides", "calibration", "predicted_at", "began_at", "measured", "predicted", "comparison",
        "disturbed", "seconds", "paths",
    }  # fmt: skip
    assert set(found["measured"]) == set(MEASURES)
    assert set(found["comparison"]) == {*MEASURES, "in_sample", "warning"}
    assert found["predicted"]["makespan_s"].keys() == {"mean", "lo", "hi", "mean_lo", "mean_hi"}
    assert Path(found["paths"]["picture"]).is_file()
    assert Path(found["paths"]["report"]).is_file()


async def test_a_folder_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(UsageError, match="cannot be written there"):
        await demonstrate(saqkit.load("school-events"), folder=tmp_path / "missing", echo=lines.append)
    assert lines == []


def slow(**changes: object) -> Topology:
    """A topology of jobs of one user, with what would take longer than a minute."""
    return Topology.parse(
        {
            "name": "slow",
            "entry": [{"job_type": "text"}],
            "queues": {"texts": {"concurrency": 5} | changes.get("queue", {})},
            "job_types": {"text": {"queue": "texts", "per_user": {"provider": "sms"}} | changes.get("job", {})},
            "providers": {"sms": {"latency": {"kind": "constant", "mean_s": 0.02}} | changes.get("provider", {})},
        }
    )


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, set()),
        ({"queue": {"rate_limit": {"limit": 1}}}, {"queues.texts.rate_limit"}),
        ({"provider": {"latency": {"kind": "constant", "mean_s": 1.0}}}, {"concurrency"}),
        (
            {
                "job": {"retry": {"max_attempts": 3, "backoff": "fixed", "delay_s": 60.0}},
                "provider": {"temporary_share": 0.2},
            },
            {"job_types.text.retry.cap_s"},
        ),
    ],
    ids=["nothing", "rate limit", "slots", "retries"],
)
async def test_only_what_takes_longer_than_the_minute_is_changed(changes: dict[str, object], keys: set[str]) -> None:
    shaped, slots, reasons = await fit_the_minute(slow(**changes), 300, 100, 2)
    assert set(reasons) == keys
    assert (slots is not None) == ("concurrency" in keys)
    drained = sim.predict(shaped, users=300, workers=2, concurrency=slots, replications=1)
    assert drained.combinations[0].measures["makespan_s"]["mean"] < 30


async def test_batches_become_so_small_that_there_are_fifty() -> None:
    shaped, slots, reasons = await fit_the_minute(saqkit.load("school-events"), 1000, 300, 2)
    assert shaped.job_types["announce"].fan_out is not None
    assert shaped.job_types["announce"].fan_out.batch_size == 20
    assert shaped.queues["notifications"].rate_limit is not None
    assert slots is None
    assert reasons == {
        "job_types.announce.fan_out.batch_size": "batches of 20 users instead of 100, so that there are about 50 jobs"
    }


async def test_slots_and_quicker_providers_come_only_where_they_help() -> None:
    """Beside work that keeps the cores busy, neither more slots nor a provider that takes no time helps."""
    busy = {"per_user": {"provider": "sms", "cpu_us": 100_000, "database": "none"}}
    _, slots, reasons = await fit_the_minute(slow(job=busy, queue={"concurrency": 10}), 600, 200, 2)
    assert (slots, reasons) == (None, {})


async def test_the_time_that_a_real_server_takes_is_left_alone() -> None:
    served = {"kind": "smtp", "latency": {"kind": "constant", "mean_s": 30.0}}
    shaped, slots, reasons = await fit_the_minute(slow(provider=served), 300, 100, 2)
    assert shaped.providers["sms"].latency.mean_s == 30.0
    assert (slots, set(reasons)) == (80, {"concurrency"})


async def test_a_demonstration_can_be_stopped_while_it_looks_for_what_fits(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await demonstrate(saqkit.load("school-events"), folder=tmp_path, echo=lines.append)
    assert lines == []
