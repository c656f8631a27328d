"""Whatever is wrong is said in one line on standard error, with exit status 2, and nothing is half done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMAND, as_process, saqkit

from saqkit.cli import main

MEASURE = ("measure", "school-events", "--users", "10")
PLAN = ("plan", "school-events", "--users", "10", "--profile", "nominal", "--target")

WRONG = {
    "command": (("mesure",), 'no command "mesure" (did you mean "measure"?)'),
    "subcommand": (("broker", "strat"), 'broker: there is no command "strat" (did you mean "start"?)'),
    "option": ((*MEASURE, "--worker", "2"), 'no option "--worker" (did you mean "--workers"?)'),
    "value missing": (("measure", "school-events", "--users"), "--users needs a value"),
    "argument missing": (("measure",), "TOPOLOGY is missing"),
    "argument too many": (("systems", "school-events"), "unexpected extra argument"),
    "topology": (("show", "school-event"), 'did you mean "school-events"?'),
    "topology file": (("show", "nowhere.toml"), "nowhere.toml: cannot be read: No such file"),
    "no users": (("measure", "school-events"), "--users or --workload: give one of them"),
    "users and workload": ((*MEASURE, "--workload", "w.toml"), "give one of them"),
    "users 0": (("measure", "school-events", "--users", "0"), "measure: --users: 0 is too small"),
    "users ten": (("measure", "school-events", "--users", "ten"), '--users: "ten" is not a whole number'),
    "users 1,000": (("measure", "school-events", "--users", "1,000"), "write 1000"),
    "users beyond": (("measure", "school-events", "--users", "3000000000"), "less than or equal to 2000000000"),
    "workers": ((*MEASURE, "--workers", "-1"), "--workers: -1 is too small"),
    "concurrency": ((*MEASURE, "--concurrency", "notification=5"), 'did you mean "notifications"?'),
    "batch size": ((*MEASURE, "--batch-size", "many"), '--batch-size: "many" is not a whole number'),
    "set without =": ((*MEASURE, "--set", "foo"), '"foo" is no override (write KEY=VALUE'),
    "set topology": ((*MEASURE, "--set", "queues.notification.tick_s=1"), 'did you mean "notifications"?'),
    "set deployment": ((*MEASURE, "--set", "deployment.worker=2"), 'did you mean "workers"?'),
    "set workload": ((*MEASURE, "--set", "workload.arrivals.user=2"), 'did you mean "users"?'),
    "set value": ((*MEASURE, "--set", "providers.email.latency.mean_s=-1"), "providers.email.latency.mean_s"),
    "set what is not there": (("show", "school-events", "--set", "deployment.workers=2"), "has no deployment"),
    "seed": ((*MEASURE, "--seed", "-1"), "--seed: -1 is too small"),
    "deployment file": ((*MEASURE, "--deployment", "nowhere.toml"), "nowhere.toml: cannot be read"),
    "trace": (("measure", "school-events", "--workload", "no.csv"), "no.csv: cannot be read"),
    "several hosts": ((*MEASURE, "--set", "deployment.hosts=2"), "measure one host, predict several"),
    "out folder": ((*MEASURE, "--out", "nowhere/run.parquet"), "nowhere does not exist"),
    "out is a folder": ((*MEASURE, "--out", "."), "--out .: is a folder"),
    "broker refuses": ((*MEASURE, "--redis", "redis://127.0.0.1:1"), "127.0.0.1:1 refuses the connection"),
    "broker address": ((*MEASURE, "--redis", "localhost:6379"), "use redis://"),
    "lists": (("predict", "school-events", "--users", "10,,20", "--profile", "nominal"), "not a whole number"),
    "profile missing": (("predict", "school-events", "--users", "10"), "predict: --profile is missing"),
    "profile": (("predict", "school-events", "--users", "10", "--profile", "no.json"), "no.json: the profile cannot"),
    "run": (("compare", "no.parquet", "--profile", "nominal"), "no.parquet: not a run"),
    "no run": (("calibrate", "--out", "p.json"), "RUN... is missing"),
    "target": ((*PLAN, "p96<=60s"), "did you mean"),
    "target unit": ((*PLAN, "p95<=60"), "the duration has no unit"),
    "price": ((*PLAN, "p95<=60s", "--price", "free"), '--price: "free" is not a number'),
    "probe": (("probe", "--seconds", "soon"), "--seconds"),
    "demo users": (("demo", "--users", "0"), "demo: --users: 0 is too small"),
    "demo folder": (("demo", "--folder", "nowhere"), "--folder nowhere: is no folder"),
    "csv": (("users", "import", "no.csv"), "no.csv: cannot be read"),
    "csv policy": (("users", "import", "no.csv", "--on-bad", "skp"), 'there is no "skp" (did you mean "skip"?)'),
    "audience": (("announce", "--title", "x", "--audience", "studens"), 'did you mean "student"?'),
    "audience missing": (("announce", "--title", "x"), "announce: --audience is missing"),
    "title": (("announce", "--title", " ", "--audience", "all"), "--title: is empty"),
    "title of two lines": (("announce", "--title", "a\nb", "--audience", "all"), "the title has a line break"),
    "no broker": (("stats",), "the embedded broker does not run (start it with `saqkit broker start`"),
    "dead letters": (("dlq", "purge"), "--all"),
    "queues": (("worker", "--queues", "notification"), 'has no queue "notification" (did you mean "notifications"?)'),
    "processes": (("worker", "--processes", "0"), "worker: --processes: 0 is too small"),
    "worker's broker": (("worker", "--redis", "redis://127.0.0.1:1"), "127.0.0.1:1 refuses the connection"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    if "title of two lines" in request.node.name:  # the event is refused by the store, after the broker was found
        monkeypatch.setenv("REDIS_URL", request.getfixturevalue("redis_url"))


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_status_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, so that modules are loaded once for all cases; the next test is the same from outside."""
    arguments, reason = WRONG[case]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("saqkit: ")
    assert reason in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["option", "set topology", "broker refuses", "no broker"])
def test_the_process_ends_with_status_2(case: str) -> None:
    arguments, reason = WRONG[case]
    done = as_process(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr


@pytest.mark.parametrize("arguments", [("broker", "start"), ("users", "import", "u.csv"), ("worker",)])
def test_a_state_folder_that_cannot_be_written_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("email\nann@school.example\n")
    (tmp_path / "file").touch()
    done = saqkit(*arguments, env={"SAQKIT_STATE": str(tmp_path / "file" / "state")})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "SAQKIT_STATE" in done.stderr


def test_a_broker_that_asks_for_a_password_is_refused_and_the_password_given_is_not_shown(tmp_path: Path) -> None:
    from saqkit.broker import PrivateBroker, redact

    server = PrivateBroker(port=0)
    try:
        url = server.start().url
        assert "@" in url
        bare = f"redis://{url.rpartition('@')[2]}"
        done = saqkit(*MEASURE, "--redis", bare)
        assert done.returncode == 2
        assert "asks for a password" in done.stderr
        done = saqkit("stats", "--redis", bare.replace("//", "//:secret@"))
        assert done.returncode == 2
        assert "secret" not in done.stderr
        assert redact(url) in done.stderr
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[queues", "is not valid TOML"),
        ('name = "x"\nentri = []', 'unknown key "entri" (did you mean "entry"?)'),
    ],
)
def test_a_wrong_topology_file_is_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    done = saqkit("measure", "mine.toml", "--users", "10")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "mine.toml" in done.stderr
    assert reason in done.stderr


def test_help_is_quick_and_loads_neither_engine() -> None:
    code = "import sys; from saqkit.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.stdout.startswith("Usage: saqkit")
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "click" in loaded
    assert not loaded & {"numpy", "pandas", "pydantic", "redis", "rich", "saq", "sim", "simpy", "sqlalchemy"}


def test_the_console_script_is_installed_and_says_its_version() -> None:
    script = Path(sys.executable).with_name("saqkit")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=20)
    assert done.stdout.startswith("saqkit, version ")
    assert subprocess.run([script], capture_output=True, text=True, timeout=20).stdout.startswith("Usage: saqkit")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = subprocess.Popen(
        [*COMMAND, "show", "school-events", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.wait(20) == 0
    assert command.stderr is not None
    with command.stderr:
        assert command.stderr.read() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "systems"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 2
    assert done.stderr == "saqkit: No space left on device\n"
