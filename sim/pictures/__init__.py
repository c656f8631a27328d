"""Pictures of predictions and of what they are compared with. Each takes and returns matplotlib Axes."""

from __future__ import annotations

from sim.pictures.beside import model_beside_run
from sim.pictures.capacity import capacity_map, cost_frontier
from sim.pictures.comparing import error_by_class, tornado, utilisation
from sim.pictures.draining import COLOURS, MARKERS, drain_band, drain_to_target, measured_over_predicted, sweep
from sim.pictures.fitting import provider_fit, tail_of_fit
from sim.pictures.waiting import depth_by_priority, latency_distribution

__all__ = [
    "COLOURS",
    "MARKERS",
    "capacity_map",
    "cost_frontier",
    "depth_by_priority",
    "drain_band",
    "drain_to_target",
    "error_by_class",
    "latency_distribution",
    "measured_over_predicted",
    "model_beside_run",
    "provider_fit",
    "sweep",
    "tail_of_fit",
    "tornado",
    "utilisation",
]
