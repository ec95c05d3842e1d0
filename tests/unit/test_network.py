"""Who is really calling, and how often one may."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import network
from service.core.network import Buckets, client_ip, site_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PROXIES = ("10.0.0.0/8", "fd00::/8")


@pytest.mark.attack("A09", "A10")
@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("198.51.100.7", [], "198.51.100.7"),
        ("198.51.100.7", ["203.0.113.9"], "198.51.100.7"),
        ("198.51.100.7", ["10.0.0.1", "10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.2.3.4, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.2.3.4", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.2.3.4, 203.0.113.9 , fd00::7"], "203.0.113.9"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9:80"], "10.0.0.1"),
        ("", ["203.0.113.9"], ""),
        ("testclient", ["203.0.113.9"], "testclient"),
    ],
)
def test_only_what_our_own_proxies_say_is_believed(
    peer: str, forwarded: list[str], found: str
) -> None:
    assert client_ip(peer, forwarded, PROXIES) == found
    assert client_ip(peer, forwarded, ()) == peer


def test_one_host_with_many_ipv6_addresses_is_one_caller() -> None:
    assert site_of("2001:db8::1") == site_of("2001:db8::ffff:1") != site_of("2001:db8:0:1::1")
    assert site_of("192.0.2.1") != site_of("192.0.2.2")
    assert site_of("::ffff:192.0.2.1") != site_of("::ffff:192.0.2.2")
    assert site_of("nobody") == "nobody"


def test_a_bucket_is_full_at_first_and_fills_again_evenly() -> None:
    buckets = Buckets(per_min=6)
    assert [buckets.take("a", NOW) for _ in range(7)] == [0] * 6 + [10]
    assert buckets.take("b", NOW) == 0
    assert buckets.take("a", NOW + timedelta(seconds=9)) == pytest.approx(1)
    assert buckets.take("a", NOW + timedelta(seconds=10)) == 0
    assert buckets.take("a", NOW + timedelta(seconds=10)) > 0
    assert [buckets.take("a", NOW + timedelta(days=1)) for _ in range(7)] == [0] * 6 + [10]


def test_a_clock_that_is_set_back_neither_fills_a_bucket_nor_locks_it() -> None:
    buckets = Buckets(per_min=1)
    assert buckets.take("a", NOW) == 0
    assert buckets.take("a", NOW - timedelta(days=1)) == 60
    assert buckets.take("a", NOW - timedelta(days=1) + timedelta(seconds=60)) == 0


@given(gaps=st.lists(st.floats(0, 30), max_size=60), per_min=st.integers(1, 100))
def test_never_more_pass_than_a_full_bucket_and_what_flows_in(
    gaps: list[float], per_min: int
) -> None:
    buckets, at, passed = Buckets(per_min), NOW, 0
    for gap in gaps:
        at += timedelta(seconds=gap)
        passed += buckets.take("a", at) == 0
    assert passed <= per_min + sum(gaps) * per_min / 60 + 1e-3


def test_of_many_callers_the_one_unused_for_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "KEYS_MAX", 3)
    buckets = Buckets(per_min=1)
    for caller in "abcad":
        buckets.take(caller, NOW)
    assert len(buckets._left) == 3
    assert buckets.take("a", NOW) > 0 and buckets.take("b", NOW) == 0
