"""Counter-based draws: one number for one key, everywhere, and uniform over all keys."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from saqkit.spec.draws import Stream, uniform, uniforms

ANY = st.integers(-(2**70), 2**70)
STREAMS = st.sampled_from(list(Stream))
GOLDEN = (0.7141942206030786, 0.7745284911644362, 0.15017048856311555)


@given(ANY, STREAMS, st.lists(st.tuples(ANY, ANY, ANY), min_size=1, max_size=8))
def test_arrays_give_bit_for_bit_the_numbers_of_single_draws(
    seed: int, stream: Stream, keys: list[tuple[int, int, int]]
) -> None:
    one_by_one = [uniform(seed, stream, *key) for key in keys]
    events, users, attempts = ([key[n] for key in keys] for n in range(3))
    together = uniforms(seed, stream, events, users, attempts)
    assert together.dtype == np.float64
    assert together.tolist() == one_by_one
    assert all(0 < u < 1 for u in one_by_one)


@given(st.integers(-(2**62), 2**62), STREAMS, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
def test_the_type_of_a_whole_number_does_not_matter(seed: int, stream: Stream, users: list[int]) -> None:
    for dtype in (np.int32, np.int64):
        array = np.array(users, dtype)
        assert uniforms(seed, stream, 1, array).tolist() == [uniform(seed, stream, 1, user) for user in users]
        assert uniform(np.int64(seed), stream, 1, array[0]) == uniform(seed, stream, 1, users[0])  # type: ignore[arg-type]


def test_keys_broadcast_against_each_other() -> None:
    table = uniforms(1, Stream.LATENCY, np.arange(3)[:, None], np.arange(4))
    assert table.shape == (3, 4)
    assert table[2, 3] == uniform(1, Stream.LATENCY, 2, 3)
    assert float(uniforms(1, Stream.JITTER, 7)) == uniform(1, Stream.JITTER, 7)


def test_another_process_draws_the_same() -> None:
    code = "from saqkit.spec.draws import *; print(repr(uniform(7, Stream.TEMPORARY, 3, 12345, 2)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == uniform(7, Stream.TEMPORARY, 3, 12345, 2)


def test_these_numbers_never_change() -> None:
    """Recorded runs are predicted again from their seed: another generator would change their arrivals and fates."""
    keys = ((0, Stream.LATENCY, 1, 1, 1), (1, Stream.ARRIVAL, 2), (-5, Stream.JITTER, 2**40, -1, 3))
    assert tuple(uniform(*key) for key in keys) == GOLDEN


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("key", ["event", "user", "attempt", "seed"])
def test_draws_are_uniform_along_every_part_of_the_key(stream: Stream, key: str) -> None:
    n = np.arange(20_000)
    if key == "seed":
        draws = np.array([uniform(seed, stream, 1, 1, 1) for seed in n.tolist()])
    else:
        draws = uniforms(42, stream, **{"event": 1, "user": 1, "attempt": 1, key: n})
    assert stats.kstest(draws, "uniform").pvalue > 1e-4
    counts = np.bincount((draws * 100).astype(int), minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-4
    # Neighbours know nothing of each other.
    pairs = np.histogram2d(draws[:-1], draws[1:], bins=10)[0].ravel()
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_streams_seeds_and_attempts_are_independent_of_each_other() -> None:
    users = np.arange(1, 20_001)
    draws = [uniforms(1, stream, 1, users, 1) for stream in Stream]
    draws += [uniforms(2, Stream.LATENCY, 1, users, 1), uniforms(1, Stream.LATENCY, 2, users, 1)]
    draws += [uniforms(1, Stream.LATENCY, 1, users, 2)]
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(len(users))
    assert len(np.unique(np.concatenate(draws))) == len(draws) * len(users)
