"""Retry schedules: bounds, growth, cap, and the ranges of jitter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqkit.spec.backoff import LONGEST_DELAY_S, Retry
from saqkit.spec.lifecycle import Action, failed

DELAYS = st.floats(0, 1e6)
RETRIES = st.builds(
    lambda attempts, delays, cap, jitter, kind, factor: Retry(
        max_attempts=attempts,
        backoff=kind,
        delay_s=delays[0],
        factor=factor,
        delays_s=tuple(delays) if kind == "list" else (),
        cap_s=cap,
        jitter=jitter,
    ),
    st.integers(1, 200),
    st.lists(DELAYS, min_size=1, max_size=6),
    st.none() | st.floats(1e-3, 1e6),
    st.sampled_from(["none", "full", "equal"]),
    st.sampled_from(["fixed", "exponential", "list"]),
    st.floats(1, 1e200),
)
OPEN = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(RETRIES, st.integers(1, 10_000), OPEN)
def test_a_delay_is_never_negative_nor_above_its_cap(retry: Retry, n: int, u: float) -> None:
    assert 0 <= retry.delay_after(n, u) <= retry.base_delay_s(n) <= min(retry.cap_s or LONGEST_DELAY_S, LONGEST_DELAY_S)


@given(RETRIES)
def test_delays_never_shrink_unless_they_are_listed_so(retry: Retry) -> None:
    if retry.backoff != "list":
        assert retry.schedule() == sorted(retry.schedule())


@given(RETRIES, st.integers(1, 300), OPEN, OPEN)
def test_jitter_stays_in_its_range_and_grows_with_its_draw(retry: Retry, n: int, u: float, v: float) -> None:
    base, delay = retry.base_delay_s(n), retry.delay_after(n, u)
    lowest = {"none": base, "full": 0.0, "equal": base / 2}[retry.jitter]
    assert lowest <= delay <= base
    low, high = sorted((u, v))
    assert retry.delay_after(n, low) <= retry.delay_after(n, high)


@given(RETRIES)
def test_a_schedule_has_one_delay_less_than_attempts_and_the_rest_is_unused(retry: Retry) -> None:
    schedule = retry.schedule()
    assert len(schedule) == retry.max_attempts - 1
    assert len(retry.unused()) == max(0, len(retry.delays_s) - len(schedule))
    # The delays of the schedule are those after which the life cycle says `retry`.
    assert sum(failed(n, retry.max_attempts) == Action.RETRY for n in range(1, 300)) == len(schedule)


@given(RETRIES)
def test_a_policy_reads_back_equal(retry: Retry) -> None:
    assert Retry.parse(retry.to_dict()) == retry


@pytest.mark.parametrize(
    ("policy", "schedule"),
    [
        ({"max_attempts": 4, "backoff": "list", "delays_s": [5, 25, 125]}, [5, 25, 125]),
        ({"max_attempts": 4, "backoff": "exponential", "delay_s": 5, "factor": 5}, [5, 25, 125]),
        ({"max_attempts": 4, "backoff": "exponential", "delay_s": 2}, [2, 4, 8]),
        ({"max_attempts": 5, "backoff": "exponential", "delay_s": 2, "cap_s": 7}, [2, 4, 7, 7]),
        ({"max_attempts": 4, "backoff": "fixed", "delay_s": 3, "factor": 9}, [3, 3, 3]),
        ({"max_attempts": 4, "backoff": "list", "delays_s": [1, 9]}, [1, 9, 9]),
        ({"max_attempts": 1}, []),
        ({"max_attempts": 3, "delay_s": 0, "factor": 1e300}, [0, 0]),
        ({"max_attempts": 3, "delay_s": 1, "factor": 1e300}, [1, LONGEST_DELAY_S]),
        ({"max_attempts": 3, "delay_s": 1, "factor": 1e300, "cap_s": 1e308}, [1, LONGEST_DELAY_S]),
        ({"max_attempts": 2, "backoff": "list", "delays_s": [1e308], "cap_s": 1e308}, [LONGEST_DELAY_S]),
    ],
)
@pytest.mark.row("000.6", "002.4")
def test_schedules_of_the_five_systems_and_their_edges(policy: dict[str, object], schedule: list[float]) -> None:
    assert Retry.parse(policy).schedule() == schedule


def test_jitter_is_where_its_draw_says() -> None:
    delays = {jitter: Retry(delay_s=8, jitter=jitter).delay_after(1, 0.25) for jitter in ("none", "full", "equal")}
    assert delays == {"none": 8, "full": 2, "equal": 5}


def test_a_delay_of_nothing_stays_nothing_where_its_factor_overflows() -> None:
    assert Retry(delay_s=0, factor=1e300, max_attempts=9).base_delay_s(8) == 0


def test_a_policy_describes_itself_and_what_it_never_uses() -> None:
    assert Retry(max_attempts=3, backoff="list", delays_s=(5, 25, 125)).describe() == (
        "3 attempts, delays 5 s, 25 s (listed but never used: 125 s)"
    )
    assert Retry(max_attempts=1).describe() == "1 attempt"
    assert Retry(max_attempts=9, jitter="full").describe() == (
        "9 attempts, delays 2 s, 4 s, 8 s, 16 s, 32 s, 64 s …, full jitter"
    )
