"""When a schedule fires: cron expressions as Kubeflow's scheduler reads them, and intervals.

Kubeflow reads cron with robfig/cron 1: six fields, seconds first. ``?`` is ``*``, names are English
and three letters long, and ``N/STEP`` goes on to the end of the range. If both day fields are
restricted, one of them has to match; if there is a ``*`` or ``?`` in either, both have to.
The library cronsim finds the times. It reads lists of numbers as Kubeflow does, so each field is
rewritten as a list.

The fields are in the time zone of Kubeflow's scheduler: UTC, unless CRON_SCHEDULE_TIMEZONE of the
scheduler is another one. Kubeflow's API does not tell.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from taylorglo.errors import InputError, quoted, shortened

_LONGEST = 1000  # characters; each value of each field once takes half of them
# Kubeflow reads a step as a number of 64 bits.
_STAR = re.compile(r"[*?](/0*[1-9]\d{0,17})?", re.ASCII)
_ITEM = re.compile(
    r"(?P<first>\d+|[a-z]{3})(?P<last>-(\d+|[a-z]{3}))?(/(?P<step>0*[1-9]\d{0,17}))?",
    re.ASCII | re.IGNORECASE,
)
_INTERVAL = re.compile(r"([1-9]\d{0,5})([mhd])", re.ASCII)
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_LONGEST_INTERVAL = 366 * _SECONDS["d"]
# Kubeflow looks this far ahead, and runs a sweep without a pause if it does not fire until then.
_HORIZON = 5  # years


class _Field(NamedTuple):
    name: str
    values: str  # in an error
    last: int
    attribute: str  # of CronSim, with the field's values


_FIELDS = (
    _Field("seconds", "0 to 59", 59, "seconds"),
    _Field("minutes", "0 to 59", 59, "minutes"),
    _Field("hours", "0 to 23", 23, "hours"),
    _Field("day of month", "1 to 31", 31, "days"),
    _Field("month", "1 to 12 or jan to dec", 12, "months"),
    _Field("day of week", "0 to 6 or sun to sat", 6, "weekdays"),
)
_UNIX_WEEKDAY = _Field("day of week", "0 to 7 or sun to sat", 7, "weekdays")


@dataclass(frozen=True)
class Cron:
    """A valid cron expression.

    Attributes:
        expression: the six fields for Kubeflow.
        numbers: the six fields for cronsim, with the same meaning.
    """

    expression: str
    numbers: str

    def firing_times(self, after: datetime, zone: tzinfo = UTC) -> Iterator[datetime]:
        """Return every firing after a time, in order and in UTC, as far as Kubeflow looks ahead.

        The times end before the first one that the zone's clocks skip or show twice.

        Args:
            after: the firings after this time are returned.
            zone: of Kubeflow's scheduler.
        """
        local = after.astimezone(zone).replace(tzinfo=None)
        try:
            times = CronSim(self.numbers, local)
        except CronSimError:
            # cronsim refuses a day that none of the months has.
            return
        for time in takewhile(lambda time: time.year <= local.year + _HORIZON, times):
            fires = time.replace(tzinfo=zone)
            if fires.utcoffset() != fires.replace(fold=1).utcoffset():
                return
            yield fires.astimezone(UTC)


def parse(text: str, now: datetime | None = None) -> Cron:
    """Read a cron expression of six fields, or one of five, which fires at second 0.

    Args:
        text: the expression. Among five fields, the day of the week may be 7 for Sunday.
        now: the expression has to fire in the five years after this time; None: the present.

    Raises:
        InputError: the expression is malformed, or never fires.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"should have at most {_LONGEST} characters, has {len(text)}")
        words = text.split()
        if len(words) not in (5, 6):
            raise ValueError(f"should have six fields, seconds first, or five; has {len(words)}")
        if len(words) == 5:
            words = ["0", *words[:4], _without_seven(words[4])]
        numbers = [_numbers(word, field) for word, field in zip(words, _FIELDS, strict=True)]
        cron = Cron(" ".join(words), " ".join(numbers))
        if next(cron.firing_times(now or datetime.now(UTC)), None) is None:
            raise ValueError(f"never fires; there is no such day in the next {_HORIZON} years")
    except ValueError as error:
        raise InputError(f'--cron "{shortened(text)}": {error}') from None
    return cron


def interval(text: str) -> int:
    """Return the seconds of ``30m``, ``12h`` or ``2d``.

    Raises:
        InputError: the text is no such interval, or the interval is longer than a year.
    """
    match = _INTERVAL.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST_INTERVAL:
        raise InputError(
            f"--every {shortened(text)}: should be like 30m, 12h or 2d, and at most 366d"
        )
    return seconds


def next_times(
    trigger: Cron | int, created: datetime, number: int = 3, now: datetime | None = None
) -> list[datetime]:
    """Return the next firings of a schedule.

    Args:
        trigger: a cron expression, or an interval in seconds, counted from the creation.
        created: when the schedule was created.
        number: how many firings to return at most.
        now: the firings after this time are returned; None: the present.
    """
    now = now or datetime.now(UTC)
    if isinstance(trigger, Cron):
        return list(islice(trigger.firing_times(now), number))
    step = timedelta(seconds=trigger)
    past = max(0, (now - created) // step)
    return [created + step * (past + count) for count in range(1, number + 1)]


def following_times(cron: Cron, after: datetime, first: datetime, number: int) -> list[datetime]:
    """Return a firing, and those that follow it in whatever time zone the scheduler has.

    Every zone in which the expression fires at ``first`` may be the scheduler's. The times go on
    as long as all these zones agree.

    Args:
        cron: the expression.
        after: the time after which ``first`` is the first firing.
        first: the firing, as the scheduler has announced it.
        number: how many firings to return at most.
    """
    if number == 1:
        return [first]
    agreed: list[datetime] | None = None
    for zone in {UTC, *map(ZoneInfo, available_timezones())}:
        times = list(islice(cron.firing_times(after, zone), number))
        if times and times[0] != first:
            continue
        pairs = zip(times if agreed is None else agreed, times, strict=False)
        agreed = [time for time, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return agreed or [first]


def _numbers(word: str, field: _Field) -> str:
    """Return a field for cronsim: the items with a star first, then the values of the others."""
    stars: list[str] = []
    values: set[int] = set()
    for item in word.split(","):
        if _STAR.fullmatch(item):
            stars.append(item.replace("?", "*"))
        else:
            values.update(_values(item, field))
    return ",".join([*stars, *map(str, sorted(values))])


def _values(item: str, field: _Field) -> list[int]:
    """Return the values of an item without a star: of N, N-M, N/STEP or N-M/STEP.

    Raises:
        ValueError: the item is malformed, or out of the field's range.
    """
    problem = (
        f"{field.name}: {quoted(item)} should be *, N, N-M (N up to M) or one of these with /STEP "
        f"(at least 1); N is {field.values}"
    )
    match = _ITEM.fullmatch(item)
    if not match:
        raise ValueError(problem)
    to_the_end = f"-{field.last}" if match["step"] else ""
    term = match["first"] + (match["last"] or to_the_end)
    words = [term if other.name == field.name else "*" for other in _FIELDS]
    try:
        values = sorted(getattr(CronSim(" ".join(words), datetime.min), field.attribute))
    except CronSimError:
        raise ValueError(problem) from None
    if values[-1] > field.last:
        raise ValueError(problem)
    return values[:: int(match["step"] or 1)]


def _without_seven(word: str) -> str:
    """Return days of the week with 0 for Sunday, in place of Unix's 7 that Kubeflow refuses."""
    items = []
    for item in word.split(","):
        values = [] if _STAR.fullmatch(item) else _values(item, _UNIX_WEEKDAY)
        has_seven = "7" in item.partition("/")[0]
        items += [str(day) for day in sorted({day % 7 for day in values})] if has_seven else [item]
    return ",".join(items)
