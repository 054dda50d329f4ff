"""The pause that a service asks for."""

import datetime
import email.utils

import pytest

from masksearch_jax.core.retry_after import retry_after


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *(("2.5", 2.5), ("-4", 0.0), ("", 0.0), ("soon", 0.0), ("nan", 0.0), ("86400", 86400.0)),
        *(("-inf", 0.0), ("inf", float("inf")), ("1e300", 1e300), (" 7 ", 7.0)),
    ],
)
def test_retry_after_in_seconds(header, seconds):
    assert retry_after(header) == seconds


def test_retry_after_as_a_date():
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert 98 < retry_after(email.utils.format_datetime(then, usegmt=True)) <= 100
    naive = then.strftime("%a, %d %b %Y %H:%M:%S")
    for zone in ("", " -0000", " GMT", " +0000", " UTC"):
        assert 98 < retry_after(naive + zone) <= 100, zone
    assert 98 < retry_after(then.astimezone().strftime("%a, %d %b %Y %H:%M:%S %z")) <= 100


@pytest.mark.parametrize(
    "date",
    [
        *("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00", "Wed, 21 Oct 2015"),
        *("Fri, 31 Dec 99999 23:59:59 GMT", "Oct Oct Oct", "Mon, 01 Jan 2001 00:00:00 GMT"),
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
        *("Wed, 21 Oct 2015 07:28:00 +9999", "Wed, 41 Oct 2030 07:28:00 GMT", "2030-10-21T07:28Z"),
    ],
)
def test_a_date_that_is_past_or_none_asks_for_no_pause(date):
    assert retry_after(date) == 0.0
