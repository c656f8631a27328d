"""When a cron line fires, in a named time zone, also where its clocks change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from croniter import CroniterBadDateError, croniter

from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

_DAY_S = 86_400
_EPOCH = datetime(1970, 1, 1)
_DRAWN = re.compile(r"(?:^|,)[hr](?:$|[(/,])", re.IGNORECASE)


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its name; `UsageError` if there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        hint = did_you_mean(name, available_timezones())
        raise UsageError(f'there is no time zone "{name}" ({hint})') from error


class CronLine:
    """A cron line (five fields, or six with the seconds last, or `@daily` and the like) in a time zone by its name.

    Where clocks change, a line whose hour is `*` goes by the time that passes: it leaves out the hour that is skipped
    and fires through both passes of the hour that comes twice. Any other line goes by the clock on the wall: what falls
    into a skipped hour fires once, when the clocks jump, and what would come twice fires at the first pass only.

    Raises `UsageError` where the line is none, never fires (within 50 years), or differs between processes (`H`, `R`),
    or where there is no such zone.
    """

    def __init__(self, line: str, zone: str = "UTC") -> None:
        self.line, self.zone = line, zone
        self._zone = zone_of(zone)
        fields = line.split()
        if any(_DRAWN.search(field) for field in fields):
            raise UsageError(f'cron line "{line}": H and R differ between processes (write the numbers)')
        if len(fields) > 6:
            raise UsageError(f'cron line "{line}": has {len(fields)} fields (use five, or a sixth with the seconds)')
        try:
            self._cron = croniter(line, _EPOCH)
            hours = self._cron.expanded[1]
            self._wall_after(0)
        except CroniterBadDateError as error:
            raise UsageError(f'cron line "{line}": never fires (name a day that its month has)') from error
        except (ValueError, TypeError, KeyError, IndexError) as error:
            why = " ".join(str(error).split())
            raise UsageError(f'cron line "{line}": {why} (write five fields, as "30 6 * * mon-fri")') from error
        self._by_wall = hours != ["*"] and set(hours) != set(range(24))

    def next(self, after: float) -> int:
        """The first time after `after` at which it fires; both in epoch seconds."""
        at = int(after // 1)
        offset = self._offset(at)
        wall = at + offset
        while True:
            found = self._wall_after(wall)
            change = self._change(at, found - offset)
            if change is None:
                if not (self._by_wall and self._second_pass(found - offset)):
                    return found - offset
                wall = found
                continue
            at, offset = change, self._offset(change)
            if self._by_wall and found < at + offset:  # the clock on the wall jumps over it
                return at
            wall = at + offset - 1

    def between(self, after: float, until: float) -> Iterator[int]:
        """The times at which it fires, later than `after`, up to and with `until`."""
        while (after := self.next(after)) <= until:
            yield after

    def latest(self, after: float, until: float, most: int) -> list[int]:
        """The latest `most` of `between`, found from their end, so that a long time costs no more than a short one."""
        span = 60.0
        while True:
            found = list(self.between(max(after, until - span), until))
            if len(found) >= most or until - span <= after:
                return found[-most:]
            span *= 2

    def _offset(self, at: int) -> int:
        offset = datetime.fromtimestamp(at, self._zone).utcoffset()
        assert offset is not None
        return int(offset.total_seconds())

    def _second_pass(self, at: int) -> bool:
        return datetime.fromtimestamp(at, self._zone).fold == 1

    def _wall_after(self, wall: int) -> int:
        """The next time of the clock on the wall that the line names, as if no clock ever changed."""
        start = _EPOCH + timedelta(seconds=wall)
        found: datetime = self._cron.get_next(datetime, start_time=start)
        return int((found - _EPOCH).total_seconds())

    def _change(self, after: int, until: int) -> int | None:
        """The first time later than `after`, up to and with `until`, at which the zone's offset is another."""
        offset = self._offset(after)
        low = after
        while low < until:
            high = min(low + _DAY_S, until)
            if self._offset(high) != offset:
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
                return high
            low = high
        return None
