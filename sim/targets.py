"""What a plan has to meet: `METRIC OP DURATION [@ PROBABILITY]`, e.g. `p95<=60s @ 0.9`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from saqkit.errors import DescriptionError
from saqkit.spec.base import did_you_mean

METRICS = {
    "drain": "makespan_s",
    "p50": "latency_p50_s",
    "p95": "latency_p95_s",
    "p99": "latency_p99_s",
    "wait_p95": "wait_p95_s",
}
SHARES = {"drain": 1.0, "p50": 0.5, "p95": 0.95, "p99": 0.99, "wait_p95": 0.0}
UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
PROBABILITY = 0.9
_GRAMMAR = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*)\s*(?P<op>[<>=!]+)\s*(?P<number>[-+.\w]*?)\s*(?P<unit>[A-Za-z]*)\s*(@\s*(?P<probability>\S+)\s*)?"
)


@dataclass(frozen=True)
class Target:
    """`metric` must be at most `bound_s` seconds in a run, with probability `probability`."""

    metric: str
    bound_s: float
    probability: float

    @property
    def measure(self) -> str:
        """The measure's name in the tables."""
        return METRICS[self.metric]

    @property
    def share(self) -> float:
        """Share of the users who must be served by the bound for a burst to meet it (0: says nothing about users)."""
        return SHARES[self.metric]

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target; `DescriptionError` says which of its parts is wrong and what would be right."""
        match = _GRAMMAR.fullmatch(text)
        if not match:
            raise _wrong(text, text, "is no target", "METRIC OP DURATION [@ PROBABILITY], e.g. p95<=60s @ 0.9")
        metric, op, number, unit, chance = match.group("metric", "op", "number", "unit", "probability")
        if metric not in METRICS:
            raise _wrong(text, metric, f'"{metric}" is no metric', did_you_mean(metric, METRICS))
        if op not in ("<=", "<"):
            raise _wrong(text, op, f'"{op}" cannot be aimed at', "a time is bounded from above: <= or <")
        if unit not in UNITS:
            shown = f'"{unit}" is no unit' if unit else "the duration has no unit"
            raise _wrong(text, unit, shown, f"one of {', '.join(UNITS)}, e.g. 60s or 10min")
        bound_s = _number(text, number, "duration") * UNITS[unit]
        if not 0 < bound_s < float("inf"):
            raise _wrong(text, number, "the duration is not positive", "e.g. 60s or 10min")
        probability = PROBABILITY
        if chance is not None:
            probability = _number(text, chance.removesuffix("%"), "probability") / (100 if chance.endswith("%") else 1)
        if not 0 < probability < 1:
            raise _wrong(text, chance, f"the probability {chance} is not between 0 and 1", "e.g. 0.9")
        return cls(metric, bound_s, probability)

    def __str__(self) -> str:
        return f"{self.metric}<={self.bound_s:g}s @ {self.probability:g}"


def _number(text: str, part: str, name: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise _wrong(text, part, f'the {name} "{part}" is no number', "e.g. p95<=60s @ 0.9") from None


def _wrong(text: str, value: object, message: str, hint: str) -> DescriptionError:
    return DescriptionError(f"{message} in {text!r}", key="target", value=value, hint=hint)
