"""`saqkit infer`: from a log, a recording or a run to files that the other commands take at once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import answer, saqkit

import sim
from saqkit.spec.topology import load
from saqkit.spec.workload import Recorded, Workload

LOG = str(Path(__file__).parents[2] / "data" / "another_queue.csv")
NAMES = {"job": "task_id", "type": "task", "attempt": "retries", "outcome": "state", "enqueued": "sent",
         "finished": "ended"}  # fmt: skip
COLUMNS = [word for pair in NAMES.items() for word in ("--column", "=".join(pair))]


def test_a_log_becomes_files_that_show_and_predict_take_at_once(tmp_path: Path) -> None:
    out = {part: str(tmp_path / f"{part}.{end}") for part, end in
           (("topology", "toml"), ("workload", "toml"), ("deployment", "toml"), ("profile", "json"))}  # fmt: skip
    told = [word for part, path in out.items() for word in (f"--out-{part}", path)]
    done = saqkit("infer", LOG, *COLUMNS, *told, "--name", "another")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    for start in ("thumbnail  default  normal    gamma", "export     default  normal    empirical", "why: invoice: ",
                  "arrivals: recorded, ", "note: ", f"saved: {out['topology']} (topology)"):  # fmt: skip
        assert any(line.startswith(start) for line in lines), start
    found = sim.infer(sim.read_attempts(LOG, NAMES), name="another")
    written, arrivals = load(out["topology"]), Workload.from_file(out["workload"]).arrivals
    assert set(written.job_types) == set(found.topology.job_types)
    for kind, provider in found.topology.providers.items():
        assert written.providers[kind].latency.mean_s == pytest.approx(provider.latency.mean_s, rel=1e-8)
    assert isinstance(arrivals, Recorded)
    assert isinstance(found.workload.arrivals, Recorded)
    assert arrivals.at_s == pytest.approx(found.workload.arrivals.at_s, rel=1e-8)
    assert arrivals.entries == found.workload.arrivals.entries
    assert sim.Profile.load(out["profile"]) == found.profile
    assert saqkit("show", out["topology"]).stdout.startswith("another\n")
    (predicted,) = answer(*lines[-1].removeprefix("next: saqkit ").split(), "--replications", "2")
    assert predicted["users"] == len(arrivals.at_s)
    assert predicted["workers"] == found.deployment.workers


def test_json_says_it_all_and_nothing_else(tmp_path: Path) -> None:
    said = answer("infer", LOG, *COLUMNS, "--arrivals", "poisson", "--out-topology", str(tmp_path / "t.toml"))
    assert set(said) == {"attempts", "topology", "workload", "deployment", "numbers", "notes", "saved"}
    assert said["workload"]["arrivals"]["kind"] == "poisson"
    assert set(said["topology"]["job_types"]) == {"thumbnail", "invoice", "export"}
    assert {"of", "what", "value", "lo", "hi", "samples", "why"} == set(said["numbers"][0])
    assert said["saved"] == {"topology": str(tmp_path / "t.toml")}


def test_a_measured_run_is_inferred_from_and_a_packed_log_is_read(measured: Any, tmp_path: Path) -> None:
    said = answer("infer", str(measured.path))
    assert set(said["topology"]["job_types"]) == {"announce", "notify"}
    assert said["attempts"] == 7
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(Path(LOG).read_bytes()))
    assert answer("infer", str(packed), *COLUMNS)["attempts"] == len(pd.read_csv(LOG))


def test_a_recording_is_inferred_from(tmp_path: Path) -> None:
    """As `saqkit.record` writes it; that it does is tested with real workers elsewhere."""
    rows = [["w", 1, 0.0, {"worker": "w", "queue": "q", "kind": "RedisQueue", "concurrency": 2}]]
    for n in range(40):
        at = 1_700_000_000_000_000 + n * 100_000
        rows.append(["a", "q", f"k{n}", at // 1000, "work", 1, 0, 0, "", 0, at // 1000, "w", at + 500, at + 600,
                     at + 40_600, at + 41_000, "done", 300, "", None])  # fmt: skip
    head = ["h", 1, {"format": 1, "host": "h", "pid": 1, "created": 0.0, "cores": 1}]
    text = "\n".join(map(json.dumps, (head, ["r", 2, 1.0, rows], ["x", 3, 1.0])))
    (tmp_path / "h-1-1.jsonl").write_text(text + "\n")
    said = answer("infer", str(tmp_path))
    assert said["attempts"] == 40
    assert said["topology"]["queues"]["q"]["concurrency"] == 2
    done = saqkit("infer", str(tmp_path / "h-1-1.jsonl"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"name the folder, {tmp_path}" in done.stderr


def log(tmp_path: Path, text: str, name: str = "log.csv") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


HEAD = "enqueued,started,finished\n"
ZONED, PLAIN = "2026-03-02T09:00:00Z", "2026-03-02T09:00:01"


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", (), "log.csv: the file is empty"),
        (HEAD, (), "log.csv: there are no rows"),
        ("enqueued,began,finished\n1,2,3\n", (), "column started is missing; name yours"),
        ("enqueued,began,finished\n1,2,3\n", ("--column", "started=begin"), 'no column "begin" for started'),
        (HEAD + "1,2,3\n-4,5,6\n", (), "row 1: enqueued is -4: a time is at least 0"),
        (HEAD + "1,3,2\n", (), "row 0 finishes 1 s before it starts"),
        (HEAD + f"{ZONED},{ZONED},{PLAIN}\n", (), "two clocks"),
        (HEAD + "5,2,3\n", (), "two clocks: 1 of 1 rows start before they are enqueued"),
        (HEAD + "1,2,3\n", ("--clock", "min"), 'clock="min": the times are numbers'),
        (HEAD + "1,2,3\n", ("--column", "started"), '--column: "started" is no pair (write enqueued=created_at'),
        (HEAD + "1,2,3\n", ("--column", "begun=started"), 'columns: there is no "begun"'),
        (HEAD + "1,2,3\n", ("--offset", "w1=late"), '--offset: w1: "late" is no number of seconds'),
        (HEAD + "1,2,3\n", ("--offset", "w1=1"), "the table names neither"),
        (HEAD + "1,2,3\n", ("--arrivals", "posson"), 'there is no "posson" (did you mean "poisson"?)'),
        (HEAD + "1,2,3\n", ("--arrivals", "poisson"), "one arrival has no rate"),
        (HEAD + "1,2,3\n", ("--name", "two words"), "name: is no name"),
        (HEAD + "1,2,3\n", ("--out-topology", "t.json"), "--out-topology t.json: its name ends in .toml"),
        (HEAD + "1,2,3\n", ("--out-profile", "nowhere/p.json"), "--out-profile nowhere/p.json: the folder"),
    ],
)
def test_bad_input_is_said_in_one_line(tmp_path: Path, text: str, options: tuple[str, ...], says: str) -> None:
    done = saqkit("infer", log(tmp_path, text), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_files_that_are_none_are_refused_and_nothing_is_written(tmp_path: Path, measured: Any) -> None:
    out = tmp_path / "t.toml"
    tables = {
        str(tmp_path / "nowhere.csv"): "nowhere.csv: there is no such file or folder",
        log(tmp_path, "{}", "log.json"): "log.json: the format .json is not known (CSV, TSV, Parquet",
        log(tmp_path, "", "log"): "the format of a file without ending is not known",
        log(tmp_path, "no parquet", "log.parquet"): "log.parquet: no Parquet file that can be read",
        log(tmp_path, "", "log.tsv"): "log.tsv: the file is empty",
    }
    for file, says in tables.items():
        done = saqkit("infer", file, "--out-topology", str(out))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), file
        assert says in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no recording is there" in saqkit("infer", str(empty)).stderr
    assert "its columns and clock are known" in saqkit("infer", str(measured.path), "--clock", "ms").stderr
    assert not out.exists()
