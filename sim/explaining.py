"""Where the time of an attempt goes, for real and in the model: what tells which mechanism a prediction lacks."""

from __future__ import annotations

import pandas as pd

from saqkit.errors import RunError
from saqkit.spec.runs import Run
from sim.fit.profile import Profile
from sim.judging import same_draw


def time_spent(attempts: pd.DataFrame) -> dict[str, float]:
    """Mean seconds of an attempt that served users: `wait` until it began, and its `service` by parts.

    `provider` and `database` are waits for those, and for the loop to go on after them. `loop` is the rest of the
    service: the CPU of its own task, `cpu`, and waiting for the loop and its core where others compute. Of users who
    are served at once (`send_concurrency`) the providers' waits overlap, so that `loop` can be less than nothing.
    `fan_out` is the service of attempts that serve nobody themselves but make others; NaN if there are none.
    """
    served = attempts[(attempts["users"] > 0) & attempts["started_at"].notna()]
    if not len(served):
        raise RunError("no attempt served any user: there is no time to tell of")
    service = served["finished_at"] - served["started_at"]
    found = {
        "wait": served["started_at"] - served["ready_at"],
        "service": service,
        "provider": served["provider_s"],
        "database": served["database_s"],
        "loop": service - served["provider_s"] - served["database_s"],
        "cpu": served["cpu_s"],
        "fan_out": (attempts["finished_at"] - attempts["started_at"])[attempts["users"] == 0],
    }
    return {name: float(values.mean()) for name, values in found.items()}


def where_time_goes(run: Run, profile: Profile) -> pd.DataFrame:
    """`time_spent` of a measured run beside its same-draw simulation, a row per part.

    Columns `measured` and `simulated` (seconds per attempt), and `difference`: simulated - measured, as a share of the
    measured service. Those of provider, database and loop add up to that of the service.
    """
    measured, simulated = time_spent(run.attempts), time_spent(same_draw(run, profile).attempts())
    table = pd.DataFrame({"measured": measured, "simulated": simulated})
    difference = (table["simulated"] - table["measured"]) / measured["service"]
    return table.assign(difference=difference).rename_axis("part")
