"""The seeds of the chaos runs."""

from __future__ import annotations

import os

import pytest


def seeds(*usual: int) -> pytest.MarkDecorator:
    """Run a test once for each seed, or only for that of SAQKIT_TEST_SEED: so a failing one is replayed."""
    given = os.environ.get("SAQKIT_TEST_SEED")
    return pytest.mark.parametrize("seed", [int(given)] if given else list(usual), ids=lambda seed: f"seed={seed}")
