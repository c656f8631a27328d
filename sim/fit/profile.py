"""What calibration found about a host, as a readable JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import log1p, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from saqkit.errors import DescriptionError, ProfileError
from saqkit.spec.base import Part
from saqkit.spec.distributions import Distribution
from saqkit.spec.interpreter import SWITCH_S
from saqkit.spec.topology import JobType, Share, Topology
from sim.engine.costs import Costs, ProviderCosts, TypeCosts

if TYPE_CHECKING:
    from numpy.random import Generator

    from saqkit.spec.runs import Run

FORMAT = 1
CPU_TIMES = (
    "cpu_scale",
    "broker_cpu_s",
    "broker_job_cpu_s",
    "client_cpu_s",
    "cold_s",
    "queue_cpu_s",
    "enqueue_s",
    "handing_s",
)
TYPE_CPU_TIMES = ("job_cpu_s", "user_cpu_s", "page_cpu_s", "batch_cpu_s")
THREAD_TIMES = ("open_s", "open_user_s", "flush_s", "flush_user_s", "page_s", "page_user_s")
OTHER_TIMES = ("timer_overshoot_s", "broker_wire_s", "wake_s", "announce_s", "restart_s")
WIDEST = 0.5  # relative error beyond which a number is no guess any more
SPEED = 0.09  # a run whose host is 15 % off its speed is marked as disturbed: 1.645 standard deviations


class Estimate(Part):
    """A fitted number with its standard error, the size of the sample that it is from, and what kind of source that
    was.
    """

    value: NonNegativeFloat
    error: NonNegativeFloat = 0.0
    samples: NonNegativeInt = 0
    source: Literal["runs", "probe", "assumed"] = "assumed"

    def draw(self, noise: Generator | None) -> float:
        """The value itself, or one that its error makes as likely: lognormal, with the value as mean."""
        if noise is None or not self.error or not self.value:
            return self.value
        variance = log1p(min(self.error / self.value, WIDEST) ** 2)
        return self.value * float(noise.lognormal(-variance / 2, sqrt(variance)))


class HostProfile(Part):
    """One host: its speed, its timers, its broker, and what the queue costs there. Seconds, CPU on an idle host.

    `cpu_scale` is real seconds per nominal second of described work, `crowded` how much longer work takes with every
    core busy. `broker_wire_s` is a round trip without the CPU at its two ends. See `sim.engine.costs.Costs` for the
    others.
    """

    host: str
    cores: PositiveInt
    cpu_scale: Estimate
    crowded: Estimate
    timer_resolution_s: NonNegativeFloat
    timer_overshoot_s: Estimate
    broker_wire_s: Estimate
    broker_cpu_s: Estimate
    broker_job_cpu_s: Estimate
    client_cpu_s: Estimate
    cold_s: Estimate
    broker_clock_s: NonNegativeFloat = Field(
        default=0.1, description="Redis looks for timed-out callers ten times a second"
    )
    queue_cpu_s: Estimate
    wake_s: Estimate
    announce_s: Estimate
    enqueue_s: Estimate
    restart_s: Estimate
    handing_s: Estimate = Estimate(value=0.0)
    switch_s: NonNegativeFloat = Field(
        default=0.0, description="how long a thread waits for Python's interpreter at most (0: it need not)"
    )
    spread: NonNegativeFloat = Field(description="relative spread of the probe's repeats of one piece of work")
    yardstick: NonNegativeFloat = Field(
        default=0.0, description="the scale that probes and yardsticks saw beside the runs (0: cpu_scale)"
    )


class TypeProfile(Part):
    """One job type: CPU per job and per user beyond the described work, and its database steps. Seconds.

    A batch opens with one transaction and ends with one flush; a fan-out reads pages, enqueues batches, and stores its
    cursor by a flush. See `sim.engine.costs.TypeCosts`.
    """

    fan_out: bool
    job_cpu_s: Estimate
    user_cpu_s: Estimate
    page_cpu_s: Estimate = Estimate(value=0.0)
    batch_cpu_s: Estimate = Estimate(value=0.0)
    open_s: Estimate
    open_user_s: Estimate
    flush_s: Estimate
    flush_user_s: Estimate
    page_s: Estimate
    page_user_s: Estimate


class ProviderProfile(Part):
    """A provider that is not simulated, as it was measured."""

    latency: Distribution
    temporary_share: Share
    permanent_share: Share
    samples: NonNegativeInt


class Profile(Part):
    """What calibration found: numbers per host and per job type, where they are from, and how far to trust them.

    `residual` is the relative error that the fitted model leaves in the makespans of its own runs, given their own
    draws. `runs` are the fingerprints of those runs, `diagnostics` what a reader should know about the fit.
    """

    format: Literal[1] = 1
    fitted_on: str
    host: HostProfile
    job_types: dict[str, TypeProfile]
    providers: dict[str, ProviderProfile] = Field(default={})
    residual: NonNegativeFloat
    runs: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default={})
    diagnostics: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @classmethod
    def nominal(cls) -> Profile:
        """A made-up host of two cores that does described work at its nominal speed: to learn and to test with."""
        return cls(
            fitted_on="never: a nominal host",
            host=HostProfile(
                host="nominal",
                cores=2,
                cpu_scale=Estimate(value=1.0),
                crowded=Estimate(value=1.0),
                timer_resolution_s=0.001,
                timer_overshoot_s=Estimate(value=1e-4),
                broker_wire_s=Estimate(value=1e-4),
                broker_cpu_s=Estimate(value=4e-5),
                broker_job_cpu_s=Estimate(value=2e-5),
                client_cpu_s=Estimate(value=8e-5),
                cold_s=Estimate(value=2.5e-4),
                queue_cpu_s=Estimate(value=1.2e-4),
                wake_s=Estimate(value=1e-3),
                announce_s=Estimate(value=5e-3),
                enqueue_s=Estimate(value=3e-5),
                restart_s=Estimate(value=1.5),
                handing_s=Estimate(value=2e-5),
                switch_s=SWITCH_S,
                spread=0.0,
            ),
            job_types={"batch": nominal_type(fan_out=False), "fan-out": nominal_type(fan_out=True)},
            residual=0.0,
        )

    @classmethod
    def free(cls) -> Profile:
        """A made-up host on which nothing but the described work takes time: there queueing theory is exact."""
        nominal, nothing = cls.nominal(), Estimate(value=0.0)
        zero = {name: nothing for name, value in nominal.host if isinstance(value, Estimate)}
        kept = {name: getattr(nominal.host, name) for name in ("cpu_scale", "crowded", "restart_s")}
        host = nominal.host.model_copy(
            update=zero | kept | {"timer_resolution_s": 0.0, "broker_clock_s": 0.0, "switch_s": 0.0}
        )
        types = {
            name: job.model_copy(update={key: nothing for key, value in job if isinstance(value, Estimate)})
            for name, job in nominal.job_types.items()
        }
        return nominal.model_copy(update={"fitted_on": "never: a host without costs", "host": host, "job_types": types})

    def save(self, path: str | Path) -> Path:
        """Write the profile as JSON."""
        path = Path(path)
        try:
            path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ProfileError(f"{path}: the profile cannot be written: {error.strerror}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a profile that `save` wrote; `ProfileError` if the file is not one."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"{path}: the profile cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ProfileError(f"{path}: is not a profile: not valid JSON ({error})") from error
        if not isinstance(data, dict) or "host" not in data:
            raise ProfileError(f'{path}: is not a profile: it has no "host"; `saqkit calibrate` writes one')
        if data.get("format") != FORMAT:
            raise ProfileError(f"{path}: format {data.get('format')}, this saqkit reads format {FORMAT}")
        try:
            return cls.parse(data, str(path))
        except DescriptionError as error:
            raise ProfileError(str(error)) from error

    def costs(self, topology: Topology, noise: Generator | None = None) -> Costs:
        """What a simulated run of `topology` is charged: the fitted values, or with `noise` ones as likely.

        With `noise` the host's speed varies too, as between real runs: by the probe's spread, up to what marks a run as
        disturbed.
        """
        host = self.host
        wobble = min(host.spread, SPEED)
        speed = 1.0 if noise is None else float(noise.lognormal(-(wobble**2) / 2, wobble))
        cpu = {name: getattr(host, name).draw(noise) * speed for name in CPU_TIMES}
        other = {name: getattr(host, name).draw(noise) for name in OTHER_TIMES}
        fitted = {name: _type_costs(profile, speed, noise) for name, profile in self.job_types.items()}
        return Costs(
            cores=host.cores,
            crowded=max(1.0, host.crowded.draw(noise)),
            timer_resolution_s=host.timer_resolution_s,
            broker_clock_s=host.broker_clock_s,
            switch_s=host.switch_s,
            types={
                name: fitted[name] if name in fitted else self._nearest(job_type, fitted)
                for name, job_type in topology.job_types.items()
            },
            providers={name: self._provider(name, topology) for name in topology.providers},
            **cpu,
            **other,
        )

    def speed_of(self, run: Run) -> float:
        """How much longer CPU work took on the host of `run`, by its probe and yardsticks, than on this profile's."""
        seen = yardstick_of(run)
        return seen / (self.host.yardstick or self.host.cpu_scale.value) if seen == seen else 1.0

    def own_speed_of(self, run: Run) -> float:
        """The same by what `run` itself shows: the CPU that its attempts took for the work that is described.

        That work is a fixed number of loop turns, so a run tells its own speed, also where the host's changes between
        probe and run. Of runs whose attempts do little described work: `speed_of`.
        """
        took_s = expected_s = described_s = 0.0
        for name, job_type in run.topology.job_types.items():
            rows = run.attempts[run.attempts["job_type"] == name]
            rows = rows[rows["outcome"].isin(["done", "retry", "dead"])]
            if job_type.fan_out or not len(rows):
                continue
            costs = self.job_types.get(name) or next(one for one in self.job_types.values() if not one.fan_out)
            jobs, users = len(rows), float(rows["users"].sum())
            work_s = 1e-6 * self.host.cpu_scale.value * (job_type.cpu_us * jobs + job_type.per_user.cpu_us * users)
            took_s += float(rows["cpu_s"].sum())
            described_s += work_s
            expected_s += work_s + costs.job_cpu_s.value * jobs + costs.user_cpu_s.value * users
        return took_s / expected_s if described_s > 0.5 * took_s > 0 else self.speed_of(run)

    def at(self, speed: float) -> Profile:
        """The same host while its CPU work takes `speed` times as long."""

        def scaled(part: HostProfile | TypeProfile, names: Sequence[str]) -> dict[str, Estimate]:
            found = {name: getattr(part, name) for name in names}
            return {name: Estimate(**{**vars(e), "value": speed * e.value}) for name, e in found.items()}

        # A transaction is work of a thread, which the host's speed decides as it does the loop's.
        names = TYPE_CPU_TIMES + THREAD_TIMES
        types = {name: kind.model_copy(update=scaled(kind, names)) for name, kind in self.job_types.items()}
        return self.model_copy(
            update={"host": self.host.model_copy(update=scaled(self.host, CPU_TIMES)), "job_types": types}
        )

    def unknown(self, topology: Topology) -> list[str]:
        """Job types of `topology` that this profile has no numbers for; those of a similar type are used."""
        return sorted(set(topology.job_types) - set(self.job_types))

    def _nearest(self, job_type: JobType, fitted: dict[str, TypeCosts]) -> TypeCosts:
        for name, profile in self.job_types.items():
            if profile.fan_out == (job_type.fan_out is not None):
                return fitted[name]
        return _type_costs(nominal_type(job_type.fan_out is not None), 1.0, None)

    def _provider(self, name: str, topology: Topology) -> ProviderCosts:
        described = topology.providers[name]
        used = self.providers.get(name, described) if described.kind != "simulated" else described
        return ProviderCosts(used.latency, used.temporary_share, used.permanent_share)

    def __repr__(self) -> str:
        return (
            f"Profile({self.host.host}: {self.host.cores} cores, CPU scale {self.host.cpu_scale.value:.3g}, "
            f"{', '.join(self.job_types)}, {len(self.runs)} run{'' if len(self.runs) == 1 else 's'}, "
            f"residual {self.residual:.1%})"
        )

    __str__ = __repr__

    def _repr_html_(self) -> str:
        import html

        import pandas as pd

        rows = [
            (owner, name, value.value, value.error, value.samples, value.source)
            for owner, part in (("host", self.host), *self.job_types.items())
            for name, value in part
            if isinstance(value, Estimate)
        ]
        table = pd.DataFrame(rows, columns=["of", "number", "value", "error", "samples", "source"])
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.diagnostics)
        shown = table.to_html(index=False, float_format="{:.3g}".format)
        return f"<p><code>{html.escape(repr(self))}</code></p><ul>{notes}</ul>{shown}"


def yardstick_of(run: Run) -> float:
    """Seconds per nominal second of work beside `run`: its probe, and the yardsticks before and after; NaN without."""
    alone = float(run.probe.get("cpu_scale", float("nan")))
    before = float(run.facts.get("yardstick", alone))
    after = before * (1 + float(run.facts.get("yardstick_drift", 0.0)))
    return 0.5 * alone + 0.25 * before + 0.25 * after


def nominal_type(fan_out: bool) -> TypeProfile:
    """What a job type is taken to cost where nothing was measured."""
    return TypeProfile(
        fan_out=fan_out,
        job_cpu_s=Estimate(value=2e-4),
        user_cpu_s=Estimate(value=1e-6 if fan_out else 5e-5),
        page_cpu_s=Estimate(value=8e-4 if fan_out else 0.0),
        batch_cpu_s=Estimate(value=6e-5 if fan_out else 0.0),
        open_s=Estimate(value=1.5e-3),
        open_user_s=Estimate(value=1.5e-5),
        flush_s=Estimate(value=1.5e-3),
        flush_user_s=Estimate(value=1.5e-5),
        page_s=Estimate(value=1.5e-3),
        page_user_s=Estimate(value=2e-6),
    )


def _type_costs(profile: TypeProfile, speed: float, noise: Generator | None) -> TypeCosts:
    values = {name: value.draw(noise) for name, value in profile if isinstance(value, Estimate)}
    for name in TYPE_CPU_TIMES:
        values[name] *= speed
    return TypeCosts(**values)
