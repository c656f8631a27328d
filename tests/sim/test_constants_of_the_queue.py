"""Numbers that the model shares with the queue, which it may not import."""

from __future__ import annotations

from saqkit.queue import enqueueing, taking
from sim.engine import feed, model, parts
from sim.engine.fast import kernel


def test_both_engines_count_with_the_numbers_of_the_queue() -> None:
    assert model.ENQUEUE_CHUNK == kernel.CHUNK == enqueueing.CHUNK
    assert feed.EARLY_S == kernel.EARLY_S == taking.EARLY_S


def test_both_engines_count_with_the_same_numbers() -> None:
    assert (feed.SHORTEST_S, feed.BLOCKING_S) == (kernel.SHORTEST_S, kernel.BLOCKING_S)
    assert (parts.FLUSH_EVERY_S, parts.COLD_AFTER_S) == (kernel.FLUSH_EVERY_S, kernel.COLD_AFTER_S)
    assert (parts.GATHERING, parts.OPENING, parts.WRITING) == (kernel.GATHERING, kernel.OPENING, kernel.WRITING)
