"""Addresses of the loopback device that nobody is likely to use: where a socket of ours gets in nobody's way."""

from __future__ import annotations

from secrets import randbelow


def unlikely_address() -> str:
    """Return an IPv4 address of the network 127.0.0.0/8, drawn from 16,516,096.

    127.0.0.0/16 is left out, which is where the addresses lie that people choose (127.0.0.1, 127.0.1.1, 127.0.0.53),
    and so is what ends in 0 or 255, because 127.255.255.255 is a broadcast address.
    """
    return f"127.{1 + randbelow(254)}.{randbelow(256)}.{1 + randbelow(254)}"
