"""Lists of ports as the kernel writes them, as in `net.ipv4.ip_local_reserved_ports`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def format_ports(ports: Iterable[int]) -> str:
    """Return the ports in order, neighbours as a range: `8080,9000-9002`.

    Source: proc_do_large_bitmap() in kernel/sysctl.c, which reads this form.
    """
    ranges: list[list[int]] = []
    for port in sorted(set(ports)):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
