"""`sim.compare`: a measured run beside its prediction, with the error; of a stream, both in its steady part."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from saqkit.spec import steady, trace
from saqkit.spec.runs import Run
from saqkit.spec.steady import Window
from sim.fit.observations import fingerprint, tick_phase_s
from sim.fit.profile import Profile
from sim.prediction import NEXT_SEED, Prediction, Scenario, predict, profile_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WARNING = "the profile was fitted on this very run: the comparison shows the fit, not a prediction"


@dataclass(frozen=True, eq=False)
class Comparison:
    """A run, the prediction of it with other draws, and the one with the run's own draws (`same_draw`).

    Of a steady stream or closed loop, latency, wait and throughput are those of `counted`, its steady part, on both
    sides: the window that the prediction's replications show (see `saqkit.spec.steady`). Of all else it is None, and
    the whole run counts.
    """

    run: Run
    profile: Profile
    prediction: Prediction
    same_draw: dict[str, float]

    @property
    def counted(self) -> Window | None:
        """The part of a stream that counts, None for the whole run."""
        return self.prediction.combinations[0].window

    @property
    def in_sample(self) -> bool:
        """Whether the profile was fitted on this run."""
        return fingerprint(self.run) in self.profile.runs

    @property
    def warning(self) -> str:
        """What weakens the comparison, empty if nothing does."""
        notes = [WARNING] if self.in_sample else []
        if (there := str(self.run.probe.get("host", self.profile.host.host))) != self.profile.host.host:
            notes.append(f"the profile is of host {self.profile.host.host}, the run of {there}")
        notes += [f"the run was disturbed: {reason}" for reason in self.run.disturbed]
        if (combination := self.prediction.combinations[0]).stable is False:
            notes.append(f"{combination.verdict}: measures depend on how long the stream is")
        elif self.counted and not self.counted.settled:
            notes.append("no steady state was found: the stream is too short for one")
        if unknown := self.profile.unknown(self.run.topology):
            notes.append(f"the profile has no numbers for {', '.join(unknown)}: those of a similar job type are used")
        return "; ".join(notes)

    @cached_property
    def _table(self) -> dict[str, dict[str, Any]]:
        combination = self.prediction.combinations[0]
        predicted = combination.steady or combination.measures
        measured = steady.measures(self.run.attempts, self.counted)
        table = {}
        for name in trace.MEASURES:
            found, real = predicted[name], measured[name]
            table[name] = {
                "measured": real,
                "predicted": found["mean"],
                "lo": found["lo"],
                "hi": found["hi"],
                "error": _error(found["mean"], real),
                "inside": bool(found["lo"] - 1e-9 <= real <= found["hi"] + 1e-9),
                "same_draw": self.same_draw[name],
                "same_draw_error": _error(self.same_draw[name], real),
            }
        return table

    def summary(self) -> pd.DataFrame:
        """A row per measure: measured, predicted, lo, hi (90 % interval of one run), error, inside, same_draw(_error).

        error = (predicted − measured) ÷ measured; NaN where nothing was measured.
        """
        return pd.DataFrame(self._table).T.infer_objects().rename_axis("measure")

    def to_dict(self) -> dict[str, Any]:
        """Per measure the columns of `summary` (null for what is undefined), and `in_sample`, `warning`."""
        table = {m: {k: None if v != v else v for k, v in row.items()} for m, row in self._table.items()}
        return {**table, "in_sample": self.in_sample, "warning": self.warning}

    def plot(self, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
        """The measured line over the predicted band: users done, and jobs waiting; returns the two Axes."""
        from sim.pictures import measured_over_predicted

        return measured_over_predicted(self.run, self.prediction.combinations[0], axes)

    def __repr__(self) -> str:
        shown = []
        for name in ("makespan_s", "throughput_users_per_s", "latency_p95_s"):
            row = self._table[name]
            where = "inside" if row["inside"] else "outside"
            shown.append(
                f"  {name}: measured {row['measured']:.4g}, predicted {row['predicted']:.4g} "
                f"[{row['lo']:.4g}, {row['hi']:.4g}], error {row['error']:+.1%}, {where}"
            )
        part = f", from {self.counted.from_s:.0f} s to {self.counted.to_s:.0f} s" if self.counted else ""
        head = f"Comparison({self.run.topology.name}{part})" + (f"\n  warning: {self.warning}" if self.warning else "")
        return "\n".join([head, *shown])

    def _repr_html_(self) -> str:
        note = f"<p><b>Warning:</b> {html.escape(self.warning)}</p>" if self.warning else ""
        return note + self.summary().to_html(float_format="{:.4g}".format)


def compare(run: Run | str | Path, profile: Profile | str | Path, replications: int | None = None) -> Comparison:
    """Predict a measured run (or the file of one) from its own description and lay the two side by side.

    The prediction never sees the run's draws; the column `same_draw` does, so that what is left in it is mechanism and
    host. `in_sample` says whether the profile was fitted on this very run.
    """
    measured, known = run if isinstance(run, Run) else Run.load(run), profile_of(profile)
    prediction = predict(
        measured.topology,
        workload=measured.workload,
        deployment=measured.deployment,
        profile=known,
        replications=replications,
        seed=measured.seed + NEXT_SEED,
    )
    scenario = Scenario(
        measured.topology, measured.deployment, measured.workload, known, measured.seed, True, tick_phase_s(measured)
    )
    own = steady.measures(scenario.run().attempts(), prediction.combinations[0].window)
    return Comparison(measured, known, prediction, own)


def _error(predicted: float, measured: float) -> float:
    if predicted == measured:
        return 0.0
    return (predicted - measured) / measured if measured else float("nan")
