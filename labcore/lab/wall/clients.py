"""What one address may do to the wall, so that a flood from it leaves room for everybody else.

A whole class may stand behind one address (a router, a class server), so the bounds are those of a large
class, not of one learner. Addresses stay in memory while the collector runs and are written nowhere.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from uuid import UUID

from labcore.serving.server.accepting import Allowance

MOST_EACH = 100  # entries that came from one address
BURST = 200  # changes from one address at once
PER_SECOND = 5.0  # changes from one address in the long run
MOST_CLIENTS = 10_000  # addresses that are remembered


class Clients:
    """Counts entries and changes by address; of IPv6 by the network of 64 bits, which one machine may own."""

    def __init__(self, most_each: int = MOST_EACH, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_each = most_each
        self._clock = clock
        self._owners: dict[UUID, str] = {}
        self._allowances: dict[str, Allowance] = {}

    def may_change(self, address: str) -> bool:
        """Whether this address may change something now, which is counted."""
        client = _network(address)
        allowance = self._allowances.pop(client, None) or Allowance(BURST, PER_SECOND)
        if len(self._allowances) >= MOST_CLIENTS:
            self._allowances.pop(next(iter(self._allowances)))  # the one that has been silent for longest
        self._allowances[client] = allowance
        return allowance.take(1, self._clock()) == 1

    def is_full(self, address: str) -> bool:
        """Whether as many entries came from this address as may."""
        return list(self._owners.values()).count(_network(address)) >= self.most_each

    def added(self, id: UUID, address: str) -> None:
        """An entry came from an address."""
        self._owners[id] = _network(address)

    def removed(self, id: UUID) -> None:
        """An entry is gone."""
        self._owners.pop(id, None)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and not parsed.ipv4_mapped:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
