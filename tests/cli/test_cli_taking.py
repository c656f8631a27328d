"""What decides which job is next, as a command shows and refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import saqkit

TOPOLOGY = """
name = "t"
[[entry]]
job_type = "f"
[job_types.f]
queue = "q"
[queues.q]
"""
WEIGHTS = "weights = {critical = 8, high = 4, normal = 2, low = 1}"


def test_show_tells_what_decides(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(f'{TOPOLOGY}{WEIGHTS}\nfairness = "tenants"\ntenant_rate_limit = {{limit = 5, period_s = 2}}\n'
                    'running_limits = [{key = "job_type", limit = 3}]\n', encoding="utf-8")  # fmt: skip
    done = saqkit("show", str(path))
    assert done.returncode == 0, done.stderr
    for line in (
        "levels by weight, while all wait: critical 53.3%, high 26.7%, normal 13.3%, low 6.7%",
        "inside a level the tenants that wait take turns",
        "of each tenant at most 5 jobs in any 2 s",
        "at most 3 jobs of one job type run at once",
        "queue q: of other levels at most 17 jobs are taken while the first of level low waits",
        "queue q: 2.5 jobs/s × 1 users a job = at most 2.5 users/s of each tenant",
    ):
        assert line in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("weights = {critical = 8, high = 4, normal = 2, low = 0}", "queues.q.weights.low: should be greater than 0"),
        ("weights = {critical = 8}", "queues.q.weights: the weight of high and normal and low is missing"),
        ("tenant_rate_limit = {limit = 5, period_s = -1}", "queues.q.tenant_rate_limit.period_s: should be greater"),
        ('running_limits = [{key = "tenants", limit = 1}]', 'queues.q.running_limits.0.key: there is no key "tenants"'),
        ("running_limits = [{limit = 1}]", "queues.q.running_limits.0.key: is missing"),
        ('fairness = "users"', 'queues.q.fairness: there is no fairness "users"'),
    ],
)
def test_what_is_wrong_is_told_on_one_line(tmp_path: Path, wrong: str, told: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(f"{TOPOLOGY}{wrong}\n", encoding="utf-8")
    done = saqkit("show", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
