"""A fit beside the sample that it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from saqkit.errors import UsageError
from saqkit.spec.distributions import AnyDistribution
from saqkit.spec.pictures import BLUE, ORANGE, new_axes
from saqkit.spec.runs import Run
from sim.fit.observations import Observed
from sim.fit.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tail_of_fit(
    times_s: ArrayLike, distribution: AnyDistribution | None, what: str = "times", ax: Axes | None = None
) -> Axes:
    """The share of `times_s` (seconds) that are longer than a time, and the fitted curve; both axes logarithmic."""
    ax = new_axes() if ax is None else ax
    sample = np.sort(np.asarray(times_s, float))
    if len(sample):
        above = 1 - (np.arange(len(sample)) + 0.5) / len(sample)
        ax.plot(sample, above, ".", color=BLUE, label=f"recorded, {len(sample):,} {what}")
    if distribution is not None:
        u = np.concatenate([np.linspace(0.001, 0.9, 200), 1 - np.geomspace(0.1, 0.3 / max(10, len(sample)), 100)])
        ax.plot(distribution.quantiles(u), 1 - u, color=ORANGE, label=f"fitted: {distribution.kind}")
    if len(sample) and sample[0] > 0:
        ax.set_xscale("log")
    ax.set(yscale="log", xlabel="seconds", ylabel="share that takes longer")
    ax.legend(frameon=False)
    return ax


def provider_fit(run: Run, profile: Profile, provider: str, ax: Axes | None = None) -> Axes:
    """The sends to `provider` that `run` sampled, and the curve that `profile` (or the description) has for them."""
    if provider not in run.topology.providers:
        raise UsageError(f'{run.name} has no provider "{provider}" (known: {", ".join(run.topology.providers)})')
    measured = profile.providers.get(provider)
    curve = measured.latency if measured is not None else run.topology.providers[provider].latency
    ax = tail_of_fit(Observed.of(run).provider_steps(provider)["took_s"], curve, "sends", ax)
    ax.set_title(provider)
    return ax
