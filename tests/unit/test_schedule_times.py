"""When schedules fire: against a clock that is looked at every minute, and what is refused."""

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest

from services.core.model.errors import InvalidSubmission
from services.core.schedules import times, zones
from services.core.schedules.times import Cron
from tests.cron_by_minutes import ZONES, changes, fires

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EXPRESSIONS = ("30 2 * * *", "0,30 1-3 * * *", "15 0 * * *", "*/20 * * * *", "*/15 3 * * *", "30 * * * *")


def test_the_twelve_zones_change_their_clocks_in_every_way():
    found = {zone: changes(zone) for zone in ZONES}
    steps = {step for moments in found.values() for _, step in moments}
    assert len(ZONES) == 12
    assert {timedelta(hours=1), -timedelta(hours=1), timedelta(minutes=30), -timedelta(minutes=30)} <= steps
    assert sum(len(moments) for moments in found.values()) > 200


@pytest.mark.parametrize("name", ZONES)
def test_a_cron_fires_as_a_clock_that_is_looked_at_every_minute_does(name):
    zone = zones.zone(name)
    for change, _ in changes(name)[:2]:
        begin, end = change - timedelta(hours=4), change + timedelta(hours=4)
        for expression in EXPRESSIONS:
            found = list(takewhile(lambda moment: moment <= end, Cron(expression, zone).after(begin)))  # noqa: B023
            assert found == fires(expression, name, begin, end), (expression, change)


def test_from_any_moment_the_next_run_is_the_same():
    zone = zones.zone("Australia/Lord_Howe")
    for change, _ in changes("Australia/Lord_Howe")[:2]:
        begin, end = change - timedelta(hours=3), change + timedelta(hours=3)
        for expression in EXPRESSIONS:
            cron = Cron(expression, zone)
            expected = fires(expression, "Australia/Lord_Howe", begin, end + timedelta(days=2))
            moment = begin
            while moment < end:
                assert cron.next(moment) == next(one for one in expected if one > moment), (expression, moment)
                moment += timedelta(minutes=7, seconds=13)


def test_a_skipped_time_fires_when_the_clock_is_set_forward_and_one_that_comes_twice_fires_once():
    berlin = zones.zone("Europe/Berlin")
    spring = islice(Cron("30 2 * * *", berlin).after(datetime(2026, 3, 28, 12, tzinfo=UTC)), 2)
    assert list(spring) == [datetime(2026, 3, 29, 1, 0, tzinfo=UTC), datetime(2026, 3, 30, 0, 30, tzinfo=UTC)]
    autumn = islice(Cron("30 2 * * *", berlin).after(datetime(2026, 10, 24, 12, tzinfo=UTC)), 2)
    assert list(autumn) == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC)]


def test_days_that_are_rare_or_were_skipped_are_found():
    assert Cron("0 0 29 2 *", zones.zone("UTC")).next(NOW) == datetime(2028, 2, 29, tzinfo=UTC)
    # Samoa had no 30 December 2011: the whole day was skipped.
    apia = Cron("0 5 30 12 *", zones.zone("Pacific/Apia"))
    assert apia.next(datetime(2011, 12, 1, tzinfo=UTC)) == datetime(2011, 12, 30, 10, tzinfo=UTC)


def test_the_latest_of_many_missed_runs_are_found_without_walking_through_all():
    cron = Cron("*/5 * * * *", zones.zone("UTC"))
    first = datetime(2020, 1, 1, tzinfo=UTC)
    assert cron.between(first, NOW, 3) == [NOW - 10 * MINUTE, NOW - 5 * MINUTE, NOW]
    assert cron.between(NOW - 5 * MINUTE, NOW, 10) == [NOW - 5 * MINUTE, NOW]
    assert cron.between(NOW + MINUTE, NOW, 10) == []
    yearly = Cron("0 0 1 1 *", zones.zone("UTC"))
    assert yearly.between(first, NOW, 2) == [datetime(year, 1, 1, tzinfo=UTC) for year in (2025, 2026)]


@pytest.mark.parametrize(
    ("expression", "code", "words"),
    [
        ("", "invalid_cron", "which has 0 fields; it must be five fields (minute, hour,"),
        ("* * * *", "invalid_cron", "which has 4 fields"),
        ("0 0 1 * * *", "invalid_cron", "which has 6 fields"),
        ("@reboot", "invalid_cron", "names such as this are not known"),
        ("*/0 * * * *", "invalid_cron", 'The minute of cron is "*/0"; it must be * or 0 to 59'),
        ("60 * * * *", "invalid_cron", 'The minute of cron is "60"'),
        ("0 25 * * *", "invalid_cron", 'The hour of cron is "25"; it must be * or 0 to 23'),
        ("0 0 32 * *", "invalid_cron", 'The day of month of cron is "32"'),
        ("0 0 * 13 *", "invalid_cron", 'The month of cron is "13"'),
        ("0 0 * * 8", "invalid_cron", 'The day of week of cron is "8"'),
        ("0 0 * * FRI-MON", "invalid_cron", 'The day of week of cron is "FRI-MON"'),
        ("L * * * *", "invalid_cron", 'The minute of cron is "L"'),
        ("0 0 L/2,1/L * *", "invalid_cron", "The day of month of cron is"),
        ("\u0661 0 * * *", "invalid_cron", "The minute of cron is"),
        ("0 0 30 2 *", "never_fires", 'cron "0 0 30 2 *" never fires within 5 years'),
        ("0 0 31 2,4,6 *", "never_fires", "never fires"),
        ("0 0 * 2 MON#5", "never_fires", "never fires within 5 years"),
        ("* * * * *", "too_often", "fires 60 seconds apart, more often than the least interval of 300 seconds"),
        ("0,1 4 1 1 *", "too_often", "fires 60 seconds apart"),
        ("0,59 0,23 * * *", "too_often", "fires 60 seconds apart"),
        ("0 " * 5000, "too_long", "it must have 200 at most"),
    ],
)
def test_a_bad_expression_is_refused_in_one_sentence(expression, code, words):
    with pytest.raises(InvalidSubmission) as refused:
        times.read(expression, ZoneInfo("UTC"), NOW, 300)
    problem = refused.value.problems[0]
    assert (problem.code, problem.param) == (code, "cron")
    assert words in problem.message
    assert len(problem.message) < 300


@pytest.mark.parametrize(
    "expression",
    ["0 1 * * *", "*/5 * * * *", "0,59 0,23 1 * *", "0 0 29 2 *", "0 0 L * *", "0 0 LW * *", "0 9 * * MON-FRI",
     "0 0 * * 1#2", "0 0 * * 7", "0 0 * jan,jul *"],
)  # fmt: skip
def test_a_good_expression_is_taken(expression):
    assert times.read(expression, zones.zone("Europe/Berlin"), NOW, 300).next(NOW) is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Mars/Phobos", 'There is no time zone "Mars/Phobos"; it must be a name such as'),
        ("Europe/Berlinn", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("America/New York", "did you mean America/New_York?"),
        ("+25:00", "it must be a name such as"),
        ("../../etc/localtime", "it must be a name such as"),
        ("", "it must be a name such as"),
        ("localtime", "it must be a name such as"),
    ],
)
def test_an_unknown_zone_is_refused_with_what_was_probably_meant(name, words):
    with pytest.raises(InvalidSubmission, match="There is no time zone") as refused:
        zones.zone(name)
    assert words in str(refused.value)


def test_zones_are_known_where_the_system_has_none(monkeypatch):
    monkeypatch.setattr("zoneinfo.TZPATH", ())
    zones._zone.cache_clear()
    assert zones.zone("Asia/Kathmandu").utcoffset(NOW.replace(tzinfo=None)) == timedelta(hours=5, minutes=45)
