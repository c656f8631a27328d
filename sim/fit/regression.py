"""Small non-negative fits that fall back on what is usual where a sample cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from sim.fit.profile import Estimate

CERTAINTY = 0.03  # how well a mean of measured times is trusted at best, as a share of it


def fit(
    columns: Sequence[ArrayLike],
    measured: ArrayLike,
    usual: Sequence[float],
    doubt: Sequence[float] | None = None,
    source: Literal["runs", "probe"] = "runs",
) -> list[Estimate]:
    """Non-negative numbers x with measured ≈ Σ columns·x, and their standard errors.

    Bayesian least squares with the prior x ~ Normal(usual, doubt·usual), doubt 1 if not given: where all rows are alike
    (every batch of one size), the prior alone says how the total is shared out; where they differ, they decide.
    """
    y = np.asarray(measured, float)
    if not len(y):
        return [Estimate(value=value, error=value / 2) for value in usual]
    prior = np.asarray(usual, float)
    width = prior * (np.ones(len(prior)) if doubt is None else np.asarray(doubt, float))
    x = prior
    design = np.column_stack([np.broadcast_to(np.asarray(c, float), y.shape) for c in columns])
    noise = CERTAINTY * float(np.abs(y).mean()) + 1e-12
    normal = np.eye(len(prior))
    for _ in range(2):
        system: NDArray[Any] = np.vstack([design / noise, np.diag(1 / width)])
        x, _ = nnls(system, np.concatenate([y / noise, prior / width]))
        normal = system.T @ system
        noise = max(noise, float(np.sqrt(np.mean((y - design @ x) ** 2))))
    errors = np.sqrt(np.diag(np.linalg.inv(normal)))
    return [
        Estimate(value=float(v), error=float(max(e, CERTAINTY * v)), samples=len(y), source=source)
        for v, e in zip(x, errors, strict=True)
    ]


def middle(values: ArrayLike, source: Literal["runs", "probe"] = "runs") -> Estimate:
    """The median of a sample, with its standard error (1.25 σ / √n, σ from the interquartile range)."""
    sample = np.asarray(values, float)
    low, mid, high = np.quantile(sample, (0.25, 0.5, 0.75))
    error = 1.25 * (high - low) / 1.35 / np.sqrt(len(sample)) if len(sample) > 3 else mid / 2
    return Estimate(value=max(0.0, float(mid)), error=float(max(0.0, error)), samples=len(sample), source=source)
