"""Cron expressions, as Kubeflow's scheduler reads them, and intervals.

The expectations come from the definitions: a drawn field knows the values that it stands for, and
every day, hour, minute and second of a span of time is compared with these values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taylorglo.errors import InputError
from taylorglo_pipelines.kubeflow.cron import following_times, interval, next_times, parse

NOW = datetime(2026, 11, 24, 21, 30, 7, 123, tzinfo=UTC)  # a Tuesday
DAY = timedelta(days=1)
HORIZON = 5  # years


def first_times(expression: str, number: int = 3) -> list[str]:
    """Return the next firings of an expression."""
    times = parse(expression, NOW).firing_times(NOW)
    return [f"{time:%Y-%m-%d %H:%M:%S}" for time in islice(times, number)]


@pytest.mark.parametrize(
    ("expression", "six", "times"),
    [
        ("0 3 * * *", "0 0 3 * * *",
         ["2026-11-25 03:00:00", "2026-11-26 03:00:00", "2026-11-27 03:00:00"]),
        ("0 0 3 * * *", "0 0 3 * * *",
         ["2026-11-25 03:00:00", "2026-11-26 03:00:00", "2026-11-27 03:00:00"]),
        ("30 0 3 ? * MON-fri", "30 0 3 ? * MON-fri",
         ["2026-11-25 03:00:30", "2026-11-26 03:00:30"]),
        ("*/20 21 * * *", "0 */20 21 * * *",
         ["2026-11-24 21:40:00", "2026-11-25 21:00:00", "2026-11-25 21:20:00"]),
        ("0 0 29 feb *", "0 0 0 29 feb *", ["2028-02-29 00:00:00"]),
        # Both day fields are restricted, so one of them has to match.
        ("0 0 1 * 0", "0 0 0 1 * 0",
         ["2026-11-29 00:00:00", "2026-12-01 00:00:00", "2026-12-06 00:00:00"]),
        # There is a star in one of them, so both have to match.
        ("0 0 */10 * 2", "0 0 0 */10 * 2",
         ["2026-12-01 00:00:00", "2027-05-11 00:00:00", "2027-06-01 00:00:00"]),
        ("0 0 25,*/10 * 2", "0 0 0 25,*/10 * 2",
         ["2026-12-01 00:00:00", "2027-05-11 00:00:00", "2027-05-25 00:00:00"]),
        ("0 0 1 * ?/7", "0 0 0 1 * ?/7",
         ["2027-08-01 00:00:00", "2028-10-01 00:00:00", "2029-04-01 00:00:00"]),
        # Unix's Sunday 7 becomes 0.
        ("0 0 * * 7", "0 0 0 * * 0",
         ["2026-11-29 00:00:00", "2026-12-06 00:00:00", "2026-12-13 00:00:00"]),
        ("0 0 * * 6-7", "0 0 0 * * 0,6",
         ["2026-11-28 00:00:00", "2026-11-29 00:00:00", "2026-12-05 00:00:00"]),
        ("0 0 * * 0-7/7", "0 0 0 * * 0", ["2026-11-29 00:00:00"]),
        ("0 0 * * 1,5-7/2", "0 0 0 * * 1,0,5",
         ["2026-11-27 00:00:00", "2026-11-29 00:00:00", "2026-11-30 00:00:00"]),
        # N/STEP ends with the range: 5/2 is Friday, and not Sunday 7 too.
        ("0 0 * * 5/2", "0 0 0 * * 5/2", ["2026-11-27 00:00:00", "2026-12-04 00:00:00"]),
        ("0 45/5 22 * * *", "0 45/5 22 * * *",
         ["2026-11-24 22:45:00", "2026-11-24 22:50:00", "2026-11-24 22:55:00"]),
        # N-N/STEP is N, and not N/STEP.
        ("0 50-50/5 22 * * *", "0 50-50/5 22 * * *",
         ["2026-11-24 22:50:00", "2026-11-25 22:50:00"]),
    ],
)  # fmt: skip
def test_expressions(expression: str, six: str, times: list[str]) -> None:
    assert parse(expression, NOW).expression == six
    assert first_times(expression, len(times)) == times
    assert first_times(six, len(times)) == times


@pytest.mark.parametrize(
    ("expression", "item", "values"),
    [
        ("60 * * * * *", "seconds: '60'", "0 to 59"),
        ("61 * * * *", "minutes: '61'", "0 to 59"),
        ("0 24 * * *", "hours: '24'", "0 to 23"),
        ("0 0 0 * *", "day of month: '0'", "1 to 31"),
        ("0 0 32 * *", "day of month: '32'", "1 to 31"),
        ("0 0 1 13 *", "month: '13'", "1 to 12 or jan to dec"),
        ("0 0 0 1 janvier *", "month: 'janvier'", "1 to 12 or jan to dec"),
        ("0 0 0 1 mon *", "month: 'mon'", "1 to 12 or jan to dec"),
        ("0 0 0 * * 7", "day of week: '7'", "0 to 6 or sun to sat"),
        ("0 0 0 * * 6-7", "day of week: '6-7'", "0 to 6 or sun to sat"),
        ("0 0 * * 8", "day of week: '8'", "0 to 7 or sun to sat"),
        ("0 0 * * fri-sun", "day of week: 'fri-sun'", "0 to 7 or sun to sat"),
        # Other schedulers have these: the last day, a workday, the third Friday.
        ("0 0 L * *", "day of month: 'L'", "1 to 31"),
        ("0 0 LW * *", "day of month: 'LW'", "1 to 31"),
        ("0 0 15W * *", "day of month: '15W'", "1 to 31"),
        ("0 0 * * 5L", "day of week: '5L'", "0 to 7 or sun to sat"),
        ("0 0 * * 5#3", "day of week: '5#3'", "0 to 7 or sun to sat"),
        ("0 0 5-1 * *", "day of month: '5-1'", "1 to 31"),
        ("*/0 * * * *", "minutes: '*/0'", "0 to 59"),
        ("5/0 * * * *", "minutes: '5/0'", "0 to 59"),
        ("*/x * * * *", "minutes: '*/x'", "0 to 59"),
        ("*-5 * * * *", "minutes: '*-5'", "0 to 59"),
        ("1,,2 * * * *", "minutes: ''", "0 to 59"),
        ("-5 * * * *", "minutes: '-5'", "0 to 59"),
        ("٣ * * * *", "minutes: '٣'", "0 to 59"),
    ],
)
def test_malformed_items_are_refused(expression: str, item: str, values: str) -> None:
    with pytest.raises(InputError) as error:
        parse(expression, NOW)
    assert str(error.value) == (
        f'--cron "{expression}": {item} should be *, N, N-M (N up to M) or one of these with '
        f"/STEP (at least 1); N is {values}"
    )


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "should have six fields, seconds first, or five; has 0"),
        ("every day", "should have six fields, seconds first, or five; has 2"),
        ("0 0 0 3 * * * 2026", "should have six fields, seconds first, or five; has 8"),
        ("@daily", "should have six fields, seconds first, or five; has 1"),
        ("0 0 30 2 *", "never fires; there is no such day in the next 5 years"),
        ("0 0 0 31 4,6,9,11 ?", "never fires; there is no such day in the next 5 years"),
    ],
)
def test_expressions_that_are_refused(expression: str, problem: str) -> None:
    with pytest.raises(InputError) as error:
        parse(expression, NOW)
    assert str(error.value) == f'--cron "{expression}": {problem}'


@pytest.mark.parametrize(
    ("year", "fires"), [(2095, True), (2096, False), (2098, False), (2099, True)]
)
def test_an_expression_has_to_fire_within_five_years(year: int, fires: bool) -> None:
    """The leap days around 2100, which has none, are 2096 and 2104."""
    now = datetime(year, 3, 1, tzinfo=UTC)
    if fires:
        leap_day = next(parse("0 0 29 2 *", now).firing_times(now))
        assert (leap_day.month, leap_day.day) == (2, 29)
    else:
        with pytest.raises(InputError, match="never fires"):
            parse("0 0 29 2 *", now)


@dataclass(frozen=True)
class Field:
    """A field as text, the values that it stands for, and whether it has a star or ``?``."""

    text: str
    values: frozenset[int]
    has_star: bool


MONTHS = ("JAN", "feb", "Mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("SUN", "mon", "Tue", "wed", "thu", "fri", "sat")


@st.composite
def items(
    draw: st.DrawFn, first: int, last: int, names: tuple[str, ...] = (), largest: int = 0
) -> Field:
    """Draw one item of a field: ``last`` ends its range; up to ``largest`` may be written."""
    low = draw(st.integers(first, largest or last))
    high = draw(st.integers(low, largest or last))
    step = draw(st.integers(1, last + 1))
    words = [str(low), str(high)]
    if names and draw(st.booleans()):
        words = [names[value - first] if value <= last else str(value) for value in (low, high)]
    forms = {
        "*": ("*", first, last, 1),
        "?": ("?", first, last, 1),
        "*/S": (f"*/{step}", first, last, step),
        "N": (words[0], low, low, 1),
        "N/S": (f"{words[0]}/{step}", low, max(low, last), step),
        "N-M": ("-".join(words), low, high, 1),
        "N-M/S": (f"{'-'.join(words)}/{step}", low, high, step),
    }
    text, start, end, stride = forms[draw(st.sampled_from(sorted(forms)))]
    values = frozenset(value for value in range(start, end + 1) if (value - start) % stride == 0)
    return Field(text, values, text[0] in "*?")


def fields(*limits: int, names: tuple[str, ...] = (), largest: int = 0) -> st.SearchStrategy[Field]:
    """Return fields of up to three items."""
    first, last = limits

    def joined(parts: list[Field]) -> Field:
        values = frozenset[int]().union(*(part.values for part in parts))
        return Field(
            ",".join(part.text for part in parts), values, any(part.has_star for part in parts)
        )

    return st.lists(items(first, last, names, largest), min_size=1, max_size=3).map(joined)


SECONDS, MINUTES, HOURS = fields(0, 59), fields(0, 59), fields(0, 23)
DATES, YEAR_MONTHS = fields(1, 31), fields(1, 12, names=MONTHS)
SIX_WEEKDAYS = fields(0, 6, names=WEEKDAYS)
FIVE_WEEKDAYS = fields(0, 6, names=WEEKDAYS, largest=7)
TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2110, 1, 1), timezones=st.just(UTC))


def is_on(day: datetime, date: Field, month: Field, weekday: Field) -> bool:
    """Return whether an expression with these fields fires on a day."""
    by_date = day.day in date.values
    by_weekday = day.isoweekday() % 7 in {value % 7 for value in weekday.values}
    both_have_to_match = date.has_star or weekday.has_star
    matches = by_date and by_weekday if both_have_to_match else by_date or by_weekday
    return matches and day.month in month.values


def days_after(now: datetime) -> Iterator[datetime]:
    """Return every midnight after a time, as far as Kubeflow looks ahead."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    while (day := day + DAY).year <= now.year + HORIZON:
        yield day


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SECONDS, MINUTES, HOURS, TIMES)
def test_the_time_of_day(second: Field, minute: Field, hour: Field, now: datetime) -> None:
    """Every second of three hours is compared with the fields."""
    start = now.replace(microsecond=0)
    moments = [start + timedelta(seconds=count) for count in range(1, 3 * 3600)]
    expected = [
        moment
        for moment in moments
        if moment.second in second.values
        and moment.minute in minute.values
        and moment.hour in hour.values
    ]
    cron = parse(f"{second.text} {minute.text} {hour.text} * * *", now)
    assert list(takewhile(lambda time: time <= moments[-1], cron.firing_times(now))) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DATES, YEAR_MONTHS, SIX_WEEKDAYS, TIMES)
def test_the_days(date: Field, month: Field, weekday: Field, now: datetime) -> None:
    """Every day until the end of the fifth year is compared with the fields."""
    expression = f"0 0 0 {date.text} {month.text} {weekday.text}"
    expected = [day for day in days_after(now) if is_on(day, date, month, weekday)]
    if expected:
        assert list(parse(expression, now).firing_times(now)) == expected
    else:
        with pytest.raises(InputError, match="never fires"):
            parse(expression, now)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MINUTES, HOURS, DATES, YEAR_MONTHS, FIVE_WEEKDAYS, TIMES)
def test_five_fields(
    minute: Field, hour: Field, date: Field, month: Field, weekday: Field, now: datetime
) -> None:
    """Five fields fire at second 0, with 7 for Sunday, and become six fields without a 7."""
    day = next((day for day in days_after(now) if is_on(day, date, month, weekday)), None)
    assume(day is not None)
    assert day is not None
    minutes = [day + timedelta(minutes=count) for count in range(24 * 60)]
    expected = [m for m in minutes if m.hour in hour.values and m.minute in minute.values]
    texts = [field.text for field in (minute, hour, date, month, weekday)]
    cron = parse(" ".join(texts), now)
    eve = day - timedelta(seconds=1)
    assert list(islice(cron.firing_times(eve), len(expected))) == expected
    assert len(cron.expression.split()) == 6
    assert parse(cron.expression, now) == cron


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("12h", 43200), ("2d", 172800), ("366d", 31622400)]
)
def test_intervals(text: str, seconds: int) -> None:
    assert interval(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0m", "12", "h", "1.5h", "-1h", "12 h", "30s", "1h30m", "367d", "999999d", "1w"]
)
def test_malformed_intervals_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="should be like 30m, 12h or 2d"):
        interval(text)


def test_an_interval_is_counted_from_the_creation() -> None:
    hour = timedelta(hours=1)
    assert next_times(3600, NOW, now=NOW) == [NOW + hour, NOW + 2 * hour, NOW + 3 * hour]
    created = NOW - timedelta(minutes=150)
    assert next_times(3600, created, 1, now=NOW) == [created + 3 * hour]


def test_the_next_times_of_an_expression() -> None:
    cron = parse("0 3 * * *", NOW)
    threes = [datetime(2026, 11, day, 3, tzinfo=UTC) for day in (25, 26, 27)]
    assert next_times(cron, NOW - DAY, now=NOW) == threes
    assert next_times(cron, NOW - DAY, 1, now=NOW) == threes[:1]


def utc(*times: str) -> list[datetime]:
    """Return times in UTC, such as ``2026-11-25 03:00``."""
    return [datetime.fromisoformat(f"{time}Z") for time in times]


@pytest.mark.parametrize(
    ("zone", "times"),
    [
        ("Asia/Tokyo", ["2026-11-25 18:00", "2026-11-26 18:00"]),
        ("Asia/Kathmandu", ["2026-11-25 21:15", "2026-11-26 21:15"]),
        ("America/New_York", ["2026-11-25 08:00", "2026-11-26 08:00"]),
    ],
)
def test_an_expression_in_another_time_zone(zone: str, times: list[str]) -> None:
    now = utc("2026-11-25 08:00" if zone.startswith("Asia") else "2026-11-25 07:59")[0]
    assert list(islice(parse("0 3 * * *").firing_times(now, ZoneInfo(zone)), 2)) == utc(*times)


def test_a_time_that_the_clocks_skip_or_show_twice_ends_the_times() -> None:
    """On 2027-03-28, Berlin's clocks go from 2 to 3 o'clock, and on 2026-10-25 from 3 to 2."""
    berlin = ZoneInfo("Europe/Berlin")
    for night, count in (("2027-03-28", 1), ("2026-10-25", 2)):
        eve = datetime.fromisoformat(f"{night} 00:00Z") - count * DAY
        times = list(islice(parse("30 2 * * *").firing_times(eve, berlin), 9))
        assert len(times) == count
        assert all(time.astimezone(berlin).hour == 2 for time in times)


@pytest.mark.parametrize(
    ("expression", "after", "times"),
    [
        # No zone but those of UTC fires at three o'clock UTC.
        ("0 3 * * *", "2026-11-24 12:00", ["2026-11-25 03:00", "2026-11-26 03:00"]),
        ("0 3 * * *", "2026-11-24 12:00", ["2026-11-24 18:00", "2026-11-25 18:00"]),
        # It may be Friday's last hour, or that of any other workday's morning.
        ("0 * * * 1-5", "2026-11-27 14:30", ["2026-11-27 15:00"]),
        ("0 * * * 1-5", "2026-11-25 12:30",
         ["2026-11-25 13:00", "2026-11-25 14:00", "2026-11-25 15:00"]),
        # Between these Sundays, the clocks of Europe change, and those of Africa do not.
        ("0 3 * * 0", "2026-10-14 12:00", ["2026-10-18 01:00"]),
        ("0 3 * * 0", "2026-11-11 12:00", ["2026-11-15 02:00", "2026-11-22 02:00"]),
    ],
)  # fmt: skip
def test_the_times_that_follow_in_whatever_time_zone(
    expression: str, after: str, times: list[str]
) -> None:
    expected = utc(*times)
    number = len(times) if len(times) > 1 else 3
    found = following_times(parse(expression), *utc(after), expected[0], number)
    assert found == expected


def test_a_time_that_no_time_zone_gives_stands_alone() -> None:
    after, first = utc("2026-11-24 12:00", "2026-11-25 03:07")
    assert following_times(parse("0 3 * * *"), after, first, 3) == [first]


def test_the_present_is_the_default() -> None:
    now = datetime.now(UTC)
    assert now < next_times(60, now)[0] <= now + timedelta(seconds=60)
    assert next_times(parse("* * * * * *"), now)[0] > now
