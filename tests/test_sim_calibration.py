"""Profiles: fitted, saved, read, refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_run import PROBE, lab, simulated_run

import sim
from saqkit.errors import ProfileError, UsageError
from saqkit.spec import trace
from saqkit.spec.distributions import Lognormal
from saqkit.spec.runs import Run
from sim.fit.profile import Estimate
from sim.fit.regression import fit, middle
from sim.pictures import provider_fit


def truth(**host: float) -> sim.Profile:
    nominal = sim.Profile.nominal()
    changed = {name: Estimate(value=value) for name, value in host.items()}
    return nominal.model_copy(update={"host": nominal.host.model_copy(update=changed)})


def small_run(profile: sim.Profile | None = None, **changes: Any) -> Run:
    return simulated_run(profile or sim.Profile.nominal(), lab(), 300, 1, 5, seed=1, **changes)


def test_three_batches_are_enough_to_predict_another_load() -> None:
    """Calibrated on 300 users, 1 worker x 5 slots; judged on 5,000 users, 2 x 20, batches of 20, with the same host."""
    profile = sim.calibrate(small_run())
    for cpu_us in (0, 500):
        topology = lab(job_types__notify__per_user__cpu_us=cpu_us).with_batch_size(20)
        run = simulated_run(sim.Profile.nominal(), topology, 5_000, 2, 20, seed=8)
        table = sim.compare(run, profile, replications=5).summary()
        for measure in ("makespan_s", "throughput_users_per_s", "latency_p95_s"):
            assert abs(table.loc[measure, "error"]) < 0.10, (cpu_us, measure)
            assert abs(table.loc[measure, "same_draw_error"]) < 0.05, (cpu_us, measure)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_described_work_of_a_run_tells_the_hosts_speed(scale: float) -> None:
    probe = {**PROBE, "cpu_scale": 1.1 * scale, "cpu_scale_crowded": 1.1 * scale}  # 10 % off
    topology = lab(job_types__notify__per_user__cpu_us=2_000)
    host = truth(cpu_scale=scale)
    runs = [simulated_run(host, topology, 600, 1, 5, seed=seed, probe=probe) for seed in (1, 2)]
    assert sim.calibrate(runs).host.cpu_scale.value == pytest.approx(scale, rel=0.05)


def test_a_cold_wake_is_told_from_the_cost_of_a_user_by_runs_at_two_rates() -> None:
    def calibrated(cold_s: float) -> sim.Profile:
        host = truth(cold_s=cold_s)
        slow = simulated_run(host, lab(), 500, 1, 5, seed=1)
        fast = simulated_run(host, lab(providers__email__latency__mean_s=0.002), 6_000, 1, 60, seed=2)
        return sim.calibrate([slow, fast])

    cheap, dear = calibrated(1e-4), calibrated(6e-4)
    assert dear.host.cold_s.value > 2 * cheap.host.cold_s.value
    for profile in (cheap, dear):
        assert profile.job_types["notify"].user_cpu_s.value == pytest.approx(5e-5, rel=0.3)


def test_the_announcement_and_the_wake_up_are_read_off_the_first_job() -> None:
    profile = sim.calibrate(small_run(truth(announce_s=0.030, wake_s=0.004)))
    assert profile.host.announce_s.value == pytest.approx(0.030, rel=0.02)
    assert profile.host.wake_s.value == pytest.approx(0.004, rel=0.2)


def with_sends(took_s: Sequence[float]) -> Run:
    """A run whose provider is a real server, with these sends to it sampled."""
    run = small_run()
    data = run.topology.to_dict()
    data["providers"]["email"] |= {"kind": "smtp", "url": "smtp://127.0.0.1:2525"}
    sends = trace.steps_frame(
        {
            "job": ["notify-1-1"] * len(took_s),
            "attempt": [1] * len(took_s),
            "user": list(range(1, len(took_s) + 1)),
            "step": ["provider"] * len(took_s),
            "waited_s": [0.0] * len(took_s),
            "took_s": list(took_s),
        }
    )
    return replace(run, topology=type(run.topology).parse(data), steps=sends)


def test_a_smtp_provider_is_fitted_from_its_sends() -> None:
    measured = with_sends(np.linspace(0.01, 0.03, 100).tolist())
    provider = sim.calibrate(measured).providers["email"]
    assert provider.samples == 100
    assert provider.latency.mean_s == pytest.approx(0.02, rel=0.01)
    with pytest.raises(ProfileError, match="10 sends"):
        sim.calibrate(replace(measured, steps=measured.steps[:10]))


def test_of_several_families_the_one_that_fits_is_taken_and_the_profile_says_why() -> None:
    real = Lognormal(mean_s=0.05, cv=1.0)
    run = with_sends(real.quantiles((np.arange(500) + 0.5) / 500).tolist())
    profile = sim.calibrate(run)
    found = profile.providers["email"].latency
    assert isinstance(found, Lognormal)
    assert found.mean_s == pytest.approx(0.05, rel=0.05)
    assert any(note.startswith("provider email: lognormal: least AIC") for note in profile.diagnostics)
    picture = provider_fit(run, profile, "email")
    sampled, fitted = picture.get_lines()
    assert len(sampled.get_xdata()) == 500
    assert fitted.get_label() == "fitted: lognormal"
    with pytest.raises(UsageError, match="sms"):
        provider_fit(run, profile, "sms")


def test_sends_that_waited_for_their_loops_say_nothing_of_a_provider() -> None:
    run = with_sends([0.02] * 100)
    span_s = trace.makespan_s(run.attempts)
    busy = replace(run, workers=tuple({**worker, "cpu_s": 0.9 * span_s} for worker in run.workers))
    with pytest.raises(ProfileError, match="event loops were busy for 90%"):
        sim.calibrate(busy)


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = sim.calibrate([small_run(), small_run(name="again")])
    path = profile.save(tmp_path / "profile.json")
    assert sim.Profile.load(path) == profile
    assert len(profile.runs) == 2
    assert repr(sim.Profile.load(path)) == repr(profile)
    assert "cold_s" in profile._repr_html_()


def test_calibrate_reads_the_files_of_runs(tmp_path: Path) -> None:
    run = small_run()
    path = run.save(tmp_path / "run.parquet")
    assert sim.calibrate(path) == sim.calibrate([run])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "is not a profile"),
        ('{"name": "lab"}', "is not a profile"),
        ('{"host": {}, "format": 7}', "format 7"),
        ('{"host": {"cores": 2}, "format": 1}', "profile.json"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=message) as caught:
        sim.Profile.load(path)
    assert "\n" not in str(caught.value)


def test_a_profile_with_a_negative_time_is_refused_by_its_key(tmp_path: Path) -> None:
    path = sim.Profile.nominal().save(tmp_path / "profile.json")
    data = json.loads(path.read_text())
    data["host"]["wake_s"]["value"] = -1
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=r"host\.wake_s\.value"):
        sim.Profile.load(path)


def test_runs_that_cannot_be_fitted_are_refused_with_the_reason() -> None:
    with pytest.raises(ProfileError, match="at least one run"):
        sim.calibrate([])
    with pytest.raises(ProfileError, match="no probe"):
        sim.calibrate(small_run(probe={}))
    with pytest.raises(ProfileError, match="2 hosts"):
        sim.calibrate([small_run(), small_run(probe={**PROBE, "host": "other"})])
    nobody = small_run().attempts.assign(users_done=0)
    with pytest.raises(ProfileError, match="no user was served"):
        sim.calibrate(small_run(attempts=nobody))


def test_a_disturbed_run_is_noted() -> None:
    notes = sim.calibrate(small_run(disturbed=("other processes used 40% of the cores",))).diagnostics
    assert any("other processes used 40%" in note for note in notes)


def test_unknown_job_types_borrow_the_numbers_of_a_similar_one() -> None:
    profile = sim.calibrate(small_run())
    data = lab().to_dict()
    data["job_types"]["tell"] = data["job_types"].pop("notify")
    data["job_types"]["announce"]["fan_out"]["to"] = "tell"
    other = type(lab()).parse(data)
    assert profile.unknown(other) == ["tell"]
    assert profile.costs(other).types["tell"] == profile.costs(lab()).types["notify"]


def test_a_fit_shares_out_by_what_is_usual_where_the_sample_cannot_tell() -> None:
    fixed, each = fit([1.0, np.full(5, 100.0)], np.full(5, 0.04), [0.01, 1e-4])
    assert fixed.value + 100 * each.value == pytest.approx(0.04, rel=0.02)
    assert fixed.value == pytest.approx(0.02, rel=0.05)
    users = np.array([10.0, 50, 100, 200])
    fixed, each = fit([1.0, users], 0.005 + 3e-4 * users, [0.01, 1e-4])
    assert fixed.value == pytest.approx(0.005, rel=0.1)
    assert each.value == pytest.approx(3e-4, rel=0.05)
    assert [estimate.source for estimate in fit([1.0], [], [0.01])] == ["assumed"]


def test_an_estimate_is_drawn_around_its_value_and_never_negative() -> None:
    noise = np.random.default_rng(3)
    drawn = [Estimate(value=1e-3, error=4e-4).draw(noise) for _ in range(4_000)]
    assert min(drawn) > 0
    assert np.mean(drawn) == pytest.approx(1e-3, rel=0.03)
    assert Estimate(value=1e-3, error=4e-4).draw(None) == 1e-3
    assert middle([1.0, 2.0, 3.0]).value == 2.0
