"""When a schedule fires: cron expressions as Kubeflow's scheduler reads them (robfig/cron 1), and plain intervals.

Six fields, seconds first, in UTC. As there, ``?`` is ``*``, names are English and three letters long, ``N/STEP`` goes
on to the end of the range, and of two restricted day fields one has to match (with a ``*`` in either, both).
A library for Unix cron differs in several of these points; tests/unit/test_cron.py compares with one where it does not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, product
from typing import NamedTuple

from taylorglo.errors import InputError

_ITEM = re.compile(
    r"(?:(?P<star>[*?])|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>\d+))?", re.ASCII
)
_INTERVAL = re.compile(r"([1-9]\d{0,5})([mhd])", re.ASCII)
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_HORIZON = (
    5  # years that Kubeflow looks ahead; it would run without a pause what does not fire in them
)


class _Field(NamedTuple):
    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()  # of the values from ``first`` on


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    _Field("seconds", 0, 59),
    _Field("minutes", 0, 59),
    _Field("hours", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 6, _WEEKDAYS),
)


@dataclass(frozen=True)
class Cron:
    """A valid expression of six fields."""

    expression: str
    values: tuple[frozenset[int], ...]
    either_day: bool

    def firing_times(self, after: datetime) -> Iterator[datetime]:
        """Every firing after a time, in order, as far as Kubeflow looks ahead."""
        seconds, minutes, hours = (sorted(values) for values in self.values[:3])
        day = after.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        last = day.year + _HORIZON
        while day.year <= last:
            if self._fires_on(day):
                for hour, minute, second in product(hours, minutes, seconds):
                    moment = day.replace(hour=hour, minute=minute, second=second)
                    if moment > after:
                        yield moment
            day += timedelta(days=1)

    def _fires_on(self, day: datetime) -> bool:
        dates, months, weekdays = self.values[3:]
        date, weekday = day.day in dates, day.isoweekday() % 7 in weekdays
        return day.month in months and (
            (date or weekday) if self.either_day else (date and weekday)
        )


def parse(text: str) -> Cron:
    """Read a cron expression of six fields, or one of five, which fires at second 0.

    Raises:
        InputError: it is none, or never fires.
    """
    words = text.split()
    if len(words) not in (5, 6):
        raise InputError(
            f'--cron "{text}": should have six fields, seconds first, or five; has {len(words)}'
        )
    try:
        if len(words) == 5:
            words = ["0", *words[:4], _sundays(words[4])]
        values = tuple(_values(word, field) for word, field in zip(words, _FIELDS, strict=True))
    except ValueError as error:
        raise InputError(f'--cron "{text}": {error}') from None
    either_day = not any(
        item[0] in "*?" for word in (words[3], words[5]) for item in word.split(",")
    )
    cron = Cron(" ".join(words), values, either_day)
    if next(cron.firing_times(datetime.now(UTC)), None) is None:
        raise InputError(
            f'--cron "{text}": never fires; there is no such day in the next {_HORIZON} years'
        )
    return cron


def interval(text: str) -> int:
    """The seconds of ``30m``, ``12h`` or ``2d``.

    Raises:
        InputError: it is none of these, or longer than a year.
    """
    match = _INTERVAL.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= 366 * _SECONDS["d"]:
        raise InputError(f"--every {text}: should be like 30m, 12h or 2d, and at most 366d")
    return seconds


def next_times(trigger: Cron | int, created: datetime, number: int = 3) -> list[datetime]:
    """The next firings of a cron expression, or of an interval in seconds that is counted from its creation."""
    now = datetime.now(UTC)
    if isinstance(trigger, Cron):
        return list(islice(trigger.firing_times(now), number))
    step = timedelta(seconds=trigger)
    past = max(0, (now - created) // step)
    return [created + step * (past + count) for count in range(1, number + 1)]


def _values(word: str, field: _Field, last: int | None = None) -> frozenset[int]:
    """The values that a field stands for; ``last``: the greatest number that may be written."""
    found: set[int] = set()
    for item in word.split(","):
        match = _ITEM.fullmatch(item)
        if not match:
            raise ValueError(
                f"{field.name}: {item!r} should be *, N, N-M or one of these with /STEP"
            )
        start, end = field.first, field.last
        if not match["star"]:
            start = _number(match["low"], field, last or field.last)
            if match["high"]:
                end = _number(match["high"], field, last or field.last)
            elif not match["step"]:
                end = start
            end = max(start, end) if start > field.last else end  # 7/2: just the 7
        if start > end:
            raise ValueError(f"{field.name}: {item!r} ends before it begins")
        step = int(match["step"] or 1)
        if step == 0:
            raise ValueError(f"{field.name}: {item!r} should have a step of at least 1")
        found.update(range(start, end + 1, step))
    return frozenset(found)


def _number(word: str, field: _Field, last: int) -> int:
    if word.lower() in field.names:
        return field.first + field.names.index(word.lower())
    if not word.isdecimal() or not field.first <= int(word) <= last:
        names = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
        raise ValueError(f"{field.name}: {word!r} should be {field.first} to {last}{names}")
    return int(word)


def _sundays(word: str) -> str:
    """Days of the week, where 7 may be Sunday, as Unix has it, without the 7, which Kubeflow does not know."""
    field, items = _FIELDS[5], []
    for item in word.split(","):
        days = _values(item, field, last=7)
        try:
            _values(item, field)
        except ValueError:
            item = ",".join(str(day) for day in sorted({day % 7 for day in days}))
        items.append(item)
    return ",".join(items)
