"""Loopback addresses that programs are unlikely to use, for short-lived sockets of ephmon itself."""

from __future__ import annotations

from secrets import randbelow

_DUMMIES = bytes([127, 254])
"""127.254.0.0/16: by this prefix, calls of the probe are told from those of other programs."""


def unlikely_address() -> str:
    """Return an IPv4 address of 127.254.0.0/16, drawn from 65,024; none that ends in 0 or 255.

    People choose addresses of 127.0.0.0/16 (127.0.0.1, 127.0.1.1, 127.0.0.53).
    """
    return f"127.254.{randbelow(256)}.{1 + randbelow(254)}"


def is_dummy(address: bytes) -> bool:
    """Tell whether a packed address is one that `unlikely_address` draws from."""
    return address.startswith(_DUMMIES)
