"""Fault sites: silent unless asked for, the same again with the same seed, clear about settings that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError

from saqkit.errors import UsageError
from saqkit.queue import fault_sites
from saqkit.queue.fault_sites import ACTIONS, Faults, parse, sites, tally
from saqkit.queue.scripts_of_queue import names


def test_nothing_is_armed_without_the_variable() -> None:
    assert fault_sites.armed is None
    assert parse("") is None


def test_every_script_has_a_site_before_and_after() -> None:
    for script in names():
        assert f"{script}.before" in sites()
        assert f"{script}.after" in sites()
    assert {"wake.before", "renew.after", "job.claimed", "job.effect"} <= set(sites())


def test_every_site_of_the_source_is_registered_and_every_call_of_a_script_has_one() -> None:
    folder = Path(fault_sites.__file__).parent
    named = set()
    for path in folder.glob("*.py"):
        for part in path.read_text(encoding="utf-8").split('armed.at("')[1:]:
            if "…" not in part.split('"')[0] and path.name != "fault_sites.py":
                named.add(part.split('"')[0])
    assert named <= set(sites())
    unnamed = set(sites()) - named - {f"{script}.{side}" for script in names() for side in ("before", "after")}
    assert unnamed == set()


@pytest.mark.parametrize(
    "wrong",
    ["rate=2", "rate=often", "seed", "sede=1", "actions=lose|explode", "only=finnish.*", "sleep_s=-1", "most=-1",
     "log=/nowhere/at/all"],
)  # fmt: skip
def test_a_wrong_setting_is_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"^SAQKIT_FAULTS: [^\n]*: give [^\n]+$") as caught:
        parse(wrong)
    assert wrong.split("|")[-1].split("=")[-1].removesuffix(".0") in str(caught.value)


def test_a_wrong_variable_ends_a_command_with_status_2_before_it_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from saqkit.cli import main; sys.exit(main())", "dlq", "list"],
        env={**os.environ, "SAQKIT_FAULTS": "rate=2"}, capture_output=True, text=True, check=False,
        cwd=Path(fault_sites.__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "saqkit: SAQKIT_FAULTS: rate=2: give a probability from 0 to 1\n"


def test_decisions_follow_from_seed_process_site_and_visit_alone() -> None:
    def decided(faults: Faults | None) -> list[tuple[str, int, str | None]]:
        assert faults is not None
        return [(site, visit, faults.decide(site, visit)) for site in sites() for visit in range(1, 200)]

    one = decided(parse("seed=7,rate=0.1"))
    assert one == decided(parse("rate=0.1,seed=7"))
    assert one != decided(parse("seed=8,rate=0.1"))
    assert one != decided(parse("seed=7,rate=0.1,process=1"))
    fired = [action for *_, action in one if action]
    assert set(fired) == set(ACTIONS)
    assert 0.08 < len(fired) / len(one) < 0.12


def test_only_most_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    faults = parse(f"rate=1,actions=lose,only=finish.*|take.after,most=2,log={log}")
    assert faults is not None
    for _ in range(3):
        faults.at("take.before")
    for _ in range(2):
        with pytest.raises(ConnectionError, match=r"fault at take\.after"):
            faults.at("take.after")
    faults.at("take.after")
    assert tally(log) == {"take.before": {"visits": 3}, "take.after": {"visits": 3, "lose": 2}}


def test_nothing_is_lost_where_there_is_no_call() -> None:
    faults = parse("rate=1")
    assert faults is not None
    assert {faults.decide("job.effect", visit) for visit in range(1, 100)} == {"sleep", "exit", "kill"}


def test_a_process_that_ends_at_a_site_has_written_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for action, code in (("exit", 70), ("kill", -9)):
        run = (
            f"from saqkit.queue import fault_sites as f; f.parse('rate=1,actions={action},log={log}').at('job.effect')"
        )
        done = subprocess.run([sys.executable, "-c", run], check=False, cwd=Path(fault_sites.__file__).parents[2])
        assert done.returncode == code
    assert tally(log) == {"job.effect": {"visits": 2, "exit": 1, "kill": 1}}


def test_a_process_that_stands_still_renews_nothing() -> None:
    faults = parse("rate=1,actions=sleep,only=take.after,sleep_s=0.2")
    assert faults is not None
    began = time.monotonic()
    faults.at("take.after")
    assert time.monotonic() - began >= 0.2
