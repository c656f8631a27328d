"""The circuit breaker that both engines use: when it opens, whom it lets through as a trial, and what it ignores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saqkit.spec.circuit import Circuit
from saqkit.spec.topology import CircuitBreaker


def send(circuit: Circuit, at_s: float, failed: bool | None) -> bool:
    """A send of no duration; whether it was let through."""
    if circuit.refuses(at_s):
        return False
    circuit.ended(circuit.begin(), at_s, failed)
    return True


def opened(failures: int = 3, reset_s: float = 10.0) -> Circuit:
    circuit = Circuit(CircuitBreaker(failures=failures, reset_s=reset_s))
    for _ in range(failures):
        assert circuit.closed
        assert send(circuit, 0.0, True)
    assert not circuit.closed
    return circuit


def test_it_opens_after_so_many_failures_in_a_row_only() -> None:
    circuit = Circuit(CircuitBreaker(failures=3, reset_s=10.0))
    for failed in (True, True, False, True, True, False):
        assert send(circuit, 0.0, failed)
    assert circuit.closed
    assert [send(circuit, 0.0, True) for _ in range(5)] == [True, True, True, False, False]


def test_it_is_tried_once_after_its_time_and_a_success_closes_it() -> None:
    circuit = opened()
    assert circuit.refuses(9.999)
    assert not circuit.refuses(10.0)
    trial = circuit.begin()
    assert circuit.refuses(10.5), "one trial at a time"
    circuit.ended(trial, 11.0, False)
    assert circuit.closed
    assert [send(circuit, 11.0, True) for _ in range(4)] == [True, True, True, False], "it counts from none again"


def test_a_trial_that_fails_opens_it_for_as_long_again() -> None:
    circuit = opened()
    trial = circuit.begin()
    circuit.ended(trial, 12.0, True)
    assert circuit.refuses(21.999)
    assert send(circuit, 22.0, False)
    assert circuit.closed


def test_a_trial_that_is_given_up_leaves_the_place_to_another() -> None:
    circuit = opened()
    trial = circuit.begin()
    assert circuit.refuses(15.0)
    circuit.ended(trial, 15.0, None)
    assert not circuit.closed
    assert send(circuit, 15.0, False)
    assert circuit.closed


def test_what_began_before_it_opened_says_nothing_afterwards() -> None:
    circuit = Circuit(CircuitBreaker(failures=2, reset_s=10.0))
    early = [circuit.begin() for _ in range(4)]
    for number in early[:2]:
        circuit.ended(number, 1.0, True)
    circuit.ended(early[2], 2.0, False)
    assert circuit.refuses(5.0), "a late success does not close it"
    circuit.ended(early[3], 9.0, True)
    assert not circuit.refuses(11.0), "a late failure does not keep it open"


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 3), st.sampled_from([True, False, None])), max_size=60))
def test_between_a_failure_that_opens_it_and_the_next_send_lies_the_reset_time(
    failures: int, sends: list[tuple[float, bool | None]]
) -> None:
    circuit, now, opened_at = Circuit(CircuitBreaker(failures=failures, reset_s=2.0)), 0.0, None
    for gap_s, failed in sends:
        now += gap_s
        was_closed = circuit.closed
        if send(circuit, now, failed):
            assert opened_at is None or now >= opened_at + 2.0
            if circuit.closed:
                opened_at = None
            elif was_closed or failed:
                opened_at = now
        else:
            assert opened_at is not None
            assert now < opened_at + 2.0
