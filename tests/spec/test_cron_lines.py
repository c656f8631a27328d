"""When a cron line fires, in a zone whose clocks change: against a table, and against every minute tried."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from saqkit.errors import UsageError
from saqkit.spec.cron_line import CronLine

MINUTE = 60


def firings(line: str, zone: str, day: str, hours: float = 24) -> list[str]:
    """What fires within some hours of a day's beginning, as the clock on the wall shows it, with its offset."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp()
    found = CronLine(line, zone).between(start - 1, start + hours * 3600 - 1)
    return [datetime.fromtimestamp(at, ZoneInfo(zone)).strftime("%H:%M%z")[:-2] for at in found]


@pytest.mark.parametrize(
    ("line", "zone", "day", "expected"),
    [
        # The clocks jump from 02:00 to 03:00.
        ("30 2 * * *", "Europe/Berlin", "2026-03-29", ["03:00+02"]),
        ("0 2 * * *", "Europe/Berlin", "2026-03-29", ["03:00+02"]),
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-29", ["03:00+02"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29", ["03:00+02"]),
        ("30 1,3 * * *", "Europe/Berlin", "2026-03-29", ["01:30+01", "03:30+02"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29T00:00", ["00:30+01", "01:30+01", "03:30+02", "04:30+02"]),
        ("30 2 * * *", "America/New_York", "2026-03-08", ["03:00-04"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-10-04", ["01:45+10"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04", ["02:30+11"]),
        # They go back from 03:00 to 02:00.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25", ["02:30+02"]),
        ("0 3 * * *", "Europe/Berlin", "2026-10-25", ["03:00+01"]),
        ("30 1-3 * * *", "Europe/Berlin", "2026-10-25", ["01:30+02", "02:30+02", "03:30+01"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25T01:00", ["01:30+02", "02:30+02", "02:30+01", "03:30+01"]),
        ("30 1 * * *", "America/New_York", "2026-11-01", ["01:30-04"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-05", ["01:45+11"]),
        # They do not change.
        ("30 2 * * *", "Asia/Kolkata", "2026-03-29", ["02:30+05"]),
        ("30 2 * * *", "UTC", "2026-03-29", ["02:30+00"]),
        ("@daily", "Europe/Berlin", "2026-03-29", ["00:00+01"]),
    ],
)
def test_where_the_clocks_change(line: str, zone: str, day: str, expected: list[str]) -> None:
    assert firings(line, zone, day, 4 if "T" in day or "*/" in line else 23) == expected


def tried(line: str, zone: str, start: int, end: int) -> Iterator[int]:
    """The same by another way: every minute is looked at. Not for lines that name days of the month and of the week."""
    clock, fields = ZoneInfo(zone), croniter(line).expanded
    by_wall = fields[1] != ["*"] and len(set(fields[1])) < 24
    before = datetime.fromtimestamp(start - MINUTE, clock).replace(tzinfo=None)

    def matches(wall: datetime) -> bool:
        values = (wall.minute, wall.hour, wall.day, wall.month, wall.isoweekday() % 7)
        return all(field == ["*"] or value in field for field, value in zip(fields, values, strict=True))

    for at in range(start, end, MINUTE):
        there = datetime.fromtimestamp(at, clock)
        wall = there.replace(tzinfo=None)
        skipped = (before + timedelta(minutes=n) for n in range(1, int((wall - before) / timedelta(minutes=1))))
        if (matches(wall) and not (by_wall and there.fold)) or (by_wall and any(map(matches, skipped))):
            yield at
        before = wall


@pytest.mark.parametrize("seed", range(40))
def test_every_minute_tried_says_the_same(seed: int) -> None:
    draws = random.Random(seed)
    zone, change = draws.choice([
        ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-03-08"),
        ("America/New_York", "2026-11-01"), ("Australia/Lord_Howe", "2026-04-05"), ("Africa/Casablanca", "2026-03-22"),
        ("Australia/Lord_Howe", "2026-10-04"), ("Pacific/Apia", "2011-12-30"), ("UTC", "2026-03-29"),
    ])  # fmt: skip
    minute = draws.choice(["*", "*/7", str(draws.randrange(60)), "0,30", "10-20"])
    hour = draws.choice(["*", "0-23", "*/2", str(draws.randrange(5)), "1-3", "2"])
    line = f"{minute} {hour} {draws.choice(['* * *', '* * *', '*/2 * *', '* * sun', '* 3-10 mon-sat'])}"
    middle = int(datetime.fromisoformat(change).replace(tzinfo=UTC).timestamp())
    start, end = middle - 14 * 3600, middle + 28 * 3600
    expected = list(tried(line, zone, start, end))
    cron = CronLine(line, zone)
    assert list(cron.between(start - 1, end - 1)) == expected, (line, zone)
    at = draws.randrange(start, end)  # from anywhere, also amid the change
    assert list(cron.between(at, end - 1)) == [one for one in expected if one > at], (line, zone, at)
    for most in (1, 3, 10_000):
        assert cron.latest(start - 1, end - 1, most) == expected[-most:]


def test_a_time_between_two_seconds_is_no_reason_to_fire_twice() -> None:
    cron = CronLine("* * * * * *")
    assert [cron.next(10), cron.next(10.999), cron.next(11)] == [11, 11, 12]


def test_what_is_rare_is_found_and_a_long_time_of_many_firings_costs_little() -> None:
    leap = CronLine("0 0 29 2 *", "Europe/Berlin")
    at = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(leap.next(at), ZoneInfo("Europe/Berlin")) == datetime(
        2028, 2, 29, tzinfo=ZoneInfo("Europe/Berlin")
    )
    assert CronLine("* * * * * *").latest(0, 1_700_000_000, 3) == [1_699_999_998, 1_699_999_999, 1_700_000_000]


@pytest.mark.parametrize(
    ("line", "zone", "text"),
    [
        ("0 0 30 2 *", "UTC", "never fires"),
        ("0 0 31 4,6,9,11 *", "UTC", "never fires"),
        ("61 * * * *", "UTC", "out of range"),
        ("* * * *", "UTC", "columns"),
        ("", "UTC", "columns"),
        ("@reboot", "UTC", "columns"),
        ("every day", "UTC", "columns"),
        ("a b c d e", "UTC", "not acceptable"),
        ("0 0 0 1 1 * 2030", "UTC", "has 7 fields"),
        ("h h * * *", "UTC", "H and R differ between processes"),
        ("R(0-29) 3 * * *", "UTC", "H and R differ between processes"),
        ("0 6 * * *", "Europe/Berln", 'there is no time zone "Europe/Berln" (did you mean "Europe/Berlin"?)'),
        ("0 6 * * *", "", 'there is no time zone ""'),
        ("0 6 * * *", "../../etc/passwd", "there is no time zone"),
    ],
)
def test_a_line_or_zone_that_is_none_is_refused_in_one_line(line: str, zone: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+\)$") as caught:
        CronLine(line, zone)
    assert text in str(caught.value)
