"""sim: predicts what a described system will do, from a profile that its own small runs gave.

The names below are loaded when they are first used, so that `import sim` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.comparison import Comparison, compare
    from sim.fit.calibration import calibrate
    from sim.fit.profile import Profile
    from sim.planning import Plan, plan
    from sim.prediction import Prediction, predict

_HOMES = {
    "Comparison": "sim.comparison",
    "Plan": "sim.planning",
    "Prediction": "sim.prediction",
    "Profile": "sim.fit.profile",
    "calibrate": "sim.fit.calibration",
    "compare": "sim.comparison",
    "plan": "sim.planning",
    "predict": "sim.prediction",
}

__all__ = ["Comparison", "Plan", "Prediction", "Profile", "calibrate", "compare", "plan", "predict"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
