"""Addresses and how much may come from them: who is really calling, and how often."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime
from ipaddress import IPv6Address, ip_address, ip_network

KEYS_MAX = 10_000
SITE_BITS = 64  # of an IPv6 address: the rest is one host's to choose


def is_within(ip: str, networks: Iterable[str]) -> bool:
    """Whether an address lies in one of these networks; what is no address lies in none."""
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    return any(address in ip_network(network) for network in networks)


def is_part(network: str, networks: Iterable[str]) -> bool:
    """Whether a network lies in one of these networks, all of it."""
    first, last = str(ip_network(network)[0]), str(ip_network(network)[-1])
    return any(is_within(first, [whole]) and is_within(last, [whole]) for whole in networks)


def client_ip(peer: str, forwarded: Sequence[str], proxies: Sequence[str]) -> str:
    """Return who is calling: the last hop that is not one of our own proxies.

    Args:
        peer: the other end of the connection.
        forwarded: the values of `X-Forwarded-For`; only what our own proxies say is believed.
        proxies: the networks of our own proxies.
    """
    hops = [hop.strip() for value in forwarded for hop in value.split(",")]
    while hops and is_within(peer, proxies) and is_within(hops[-1], ("0.0.0.0/0", "::/0")):
        peer = hops.pop()
    return peer


def site_of(ip: str) -> str:
    """Return what counts as one caller: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        address = ip_address(ip)
    except ValueError:
        return ip
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(ip_network((address, SITE_BITS), strict=False))
    return ip


class Buckets:
    """Token buckets, one a caller: full at first, and filled again evenly.

    At most `KEYS_MAX` are kept; the one unused for longest goes, and would be full by then.
    """

    def __init__(self, per_min: int) -> None:
        self._per_min = per_min
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, datetime]] = OrderedDict()

    def take(self, caller: str, now: datetime) -> float:
        """Take one token; returns 0, or in how many seconds there is one again."""
        with self._lock:
            left, at = self._left.pop(caller, (float(self._per_min), now))
            refilled = max((now - at).total_seconds(), 0) * self._per_min / 60
            left = min(left + refilled, self._per_min)
            wait_s = 0.0 if left >= 1 else (1 - left) * 60 / self._per_min
            self._left[caller] = (left if wait_s else left - 1, now)
            while len(self._left) > KEYS_MAX:
                self._left.popitem(last=False)
        return wait_s
