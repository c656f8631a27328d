"""sim: predicts what a described system will do, from a profile that its own small runs gave.

The names below are loaded when they are first used, so that `import sim` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.alternatives import WhatIf, what_if
    from sim.analysis.coverage import Coverage, coverage
    from sim.comparison import Comparison, compare
    from sim.fit.calibration import calibrate
    from sim.fit.profile import Profile
    from sim.importing import read_attempts
    from sim.inferring import Inferred, infer
    from sim.judging import Accuracy, judge
    from sim.planning import Plan, plan
    from sim.prediction import Prediction, predict
    from sim.running.sweeping import Interrupted

_HOMES = {
    "Accuracy": "sim.judging",
    "Comparison": "sim.comparison",
    "Coverage": "sim.analysis.coverage",
    "Inferred": "sim.inferring",
    "Interrupted": "sim.running.sweeping",
    "Plan": "sim.planning",
    "Prediction": "sim.prediction",
    "Profile": "sim.fit.profile",
    "WhatIf": "sim.alternatives",
    "calibrate": "sim.fit.calibration",
    "compare": "sim.comparison",
    "coverage": "sim.analysis.coverage",
    "infer": "sim.inferring",
    "judge": "sim.judging",
    "plan": "sim.planning",
    "predict": "sim.prediction",
    "read_attempts": "sim.importing",
    "what_if": "sim.alternatives",
}

__all__ = [
    "Accuracy",
    "Comparison",
    "Coverage",
    "Inferred",
    "Interrupted",
    "Plan",
    "Prediction",
    "Profile",
    "WhatIf",
    "calibrate",
    "compare",
    "coverage",
    "infer",
    "judge",
    "plan",
    "predict",
    "read_attempts",
    "what_if",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
