"""Cron expressions: read as Kubeflow's scheduler reads them; what never fires, and nonsense, is
refused."""

import re
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taylorglo.errors import InputError
from taylorglo_pipelines.kubeflow.cron import interval, next_times, parse

NOW = datetime(2026, 11, 24, 21, 30, 7, 123, tzinfo=UTC)


def times(expression: str, number: int = 3, after: datetime = NOW) -> list[str]:
    return [
        f"{time:%Y-%m-%d %H:%M:%S}"
        for time in islice(parse(expression).firing_times(after), number)
    ]


@pytest.mark.parametrize(
    ("given_", "six", "first"),
    [
        ("0 3 * * *", "0 0 3 * * *", ["2026-11-25 03:00:00", "2026-11-26 03:00:00", "2026-11-27 03:00:00"]),
        ("0 0 3 * * *", "0 0 3 * * *", ["2026-11-25 03:00:00", "2026-11-26 03:00:00", "2026-11-27 03:00:00"]),
        ("30 0 3 ? * MON-fri", "30 0 3 ? * MON-fri", ["2026-11-25 03:00:30", "2026-11-26 03:00:30"]),
        ("*/20 21 * * *", "0 */20 21 * * *", ["2026-11-24 21:40:00", "2026-11-25 21:00:00", "2026-11-25 21:20:00"]),
        ("0 0 29 feb *", "0 0 0 29 feb *", ["2028-02-29 00:00:00"]),
        # Both day fields are restricted: one of them is enough (24 Nov 2026 is a Tuesday).
        ("0 0 1 * 0", "0 0 0 1 * 0", ["2026-11-29 00:00:00", "2026-12-01 00:00:00", "2026-12-06 00:00:00"]),
        # One of them begins with a star: both have to match.
        ("0 0 */10 * 2", "0 0 0 */10 * 2", ["2026-12-01 00:00:00", "2027-05-11 00:00:00", "2027-06-01 00:00:00"]),
        # Unix's other Sunday.
        ("0 0 * * 7", "0 0 0 * * 0", ["2026-11-29 00:00:00", "2026-12-06 00:00:00", "2026-12-13 00:00:00"]),
        ("0 0 * * 6-7", "0 0 0 * * 0,6", ["2026-11-28 00:00:00", "2026-11-29 00:00:00", "2026-12-05 00:00:00"]),
        ("0 0 * * 0-7/7", "0 0 0 * * 0", ["2026-11-29 00:00:00"]),
        ("0 0 * * 1,5-7/2", "0 0 0 * * 1,0,5", ["2026-11-27 00:00:00", "2026-11-29 00:00:00", "2026-11-30 00:00:00"]),
        ("0 45/5 22 * * *", "0 45/5 22 * * *", ["2026-11-24 22:45:00", "2026-11-24 22:50:00", "2026-11-24 22:55:00"]),
    ],
)  # fmt: skip
def test_expressions(given_: str, six: str, first: list[str]) -> None:
    assert parse(given_).expression == six
    assert times(given_, len(first)) == first
    assert times(six, len(first)) == first


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "should have six fields, seconds first, or five; has 0"),
        ("every day", "has 2"),
        ("0 0 0 3 * * * 2026", "has 8"),
        ("@daily", "has 1"),
        ("61 * * * *", "minutes: '61' should be 0 to 59"),
        ("0 24 * * *", "hours: '24' should be 0 to 23"),
        ("0 0 0 * *", "day of month: '0' should be 1 to 31"),
        ("0 0 1 13 *", "month: '13' should be 1 to 12 or jan to dec"),
        ("0 0 0 1 janvier *", "month: 'janvier' should be 1 to 12 or jan to dec"),
        ("0 0 0 * * 7", "day of week: '7' should be 0 to 6 or sun to sat"),
        ("0 0 * * 8", "day of week: '8' should be 0 to 7 or sun to sat"),
        ("0 0 L * *", "day of month: 'L' should be 1 to 31"),
        ("0 0 * * 5#3", "day of week: '5#3' should be *, N, N-M"),
        ("0 0 5-1 * *", "day of month: '5-1' ends before it begins"),
        ("*/0 * * * *", "minutes: '*/0' should have a step of at least 1"),
        ("*/x * * * *", "minutes: '*/x' should be *, N, N-M"),
        ("1,,2 * * * *", "minutes: '' should be *, N, N-M"),
        ("-5 * * * *", "minutes: '-5' should be"),
        ("٣ * * * *", "minutes: '٣' should be"),
        ("0 0 30 2 *", "never fires; there is no such day in the next 5 years"),
        ("0 0 0 31 4,6,9,11 ?", "never fires"),
    ],
)
def test_nonsense_is_refused(expression: str, problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)) as error:
        parse(expression)
    assert str(error.value).startswith(f'--cron "{expression}": ')


def fields(first: int, last: int, names: str = "") -> st.SearchStrategy[str]:
    """A cron field: every form in which it can be written."""
    order = {name: number for number, name in enumerate(names.split(), first)}
    words = st.sampled_from([*map(str, range(first, last + 1)), *order])

    def value(word: str) -> int:
        return order[word] if word in order else int(word)

    step = st.integers(1, last).map(lambda number: f"/{number}") | st.just("")
    # Of one number only in its own right: cronsim takes 0-0/2 for 0/2.
    ranges = (
        st.tuples(words, words).filter(lambda pair: value(pair[0]) < value(pair[1])).map("-".join)
    )
    items = st.tuples(ranges, step).map("".join) | words
    star = st.tuples(st.just("*"), step).map("".join)
    return star | st.lists(items, min_size=1, max_size=3).map(",".join)


FIVE = st.tuples(
    fields(0, 59),
    fields(0, 23),
    fields(1, 31),
    fields(1, 12, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"),
    fields(0, 7),
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(FIVE, st.datetimes(datetime(2026, 1, 1), datetime(2040, 1, 1)))
def test_five_fields_fire_when_unix_says_so(expression: str, after: datetime) -> None:
    """An independent implementation agrees on the five fields, and on the six that they become."""
    after = after.replace(tzinfo=UTC)
    try:
        cron = parse(expression)
    except InputError:
        try:
            found = next(CronSim(expression, datetime.now(UTC)), None)
        except CronSimError:
            found = None
        assert found is None or found.year > datetime.now(UTC).year + 5
        return
    assert len(cron.expression.split()) == 6
    assert cron == parse(cron.expression)
    ours = list(islice(cron.firing_times(after), 4))
    assume(ours)
    theirs = CronSim(expression, after)
    assert ours == [next(theirs) for _ in ours]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("12h", 43200), ("2d", 172800), ("366d", 31622400)]
)
def test_intervals(text: str, seconds: int) -> None:
    assert interval(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0m", "12", "h", "1.5h", "-1h", "12 h", "30s", "1h30m", "367d", "999999d", "1w"]
)
def test_intervals_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="should be like 30m, 12h or 2d"):
        interval(text)


def test_an_interval_is_counted_from_its_creation() -> None:
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    assert next_times(3600, now) == [now + hour, now + 2 * hour, now + 3 * hour]
    created = now - timedelta(minutes=150)
    assert next_times(3600, created, 1) == [created + 3 * hour]
