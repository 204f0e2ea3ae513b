"""Which destinations `pools.ignore_destinations` leaves out: of lists, of the worst utilisation and of alerts."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.model.rules import DestinationPattern


def is_ignored(destination: tuple[bytes, int] | None, patterns: Sequence[DestinationPattern]) -> bool:
    """Tell whether a destination (packed address, port) is left out.

    None, which is that of a pool without a destination, never is.
    """
    if destination is None:
        return False
    address, port = ip_address(destination[0]), destination[1]
    return any(address in pattern.network and pattern.port in (None, port) for pattern in patterns)
