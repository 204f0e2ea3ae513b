"""Lists of ports as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.port_list import format_ports
from ephmon.kernel.proc.sysctl import parse_ports

LISTS = {
    (): "",
    (8080,): "8080",
    (9002, 8080, 9000, 9001): "8080,9000-9002",
    (1, 1, 2, 65535): "1-2,65535",
}


@pytest.mark.parametrize(("ports", "line"), LISTS.items(), ids=map(str, LISTS))
def test_ports_stand_in_order_and_neighbours_are_a_range(ports: tuple[int, ...], line: str) -> None:
    assert format_ports(ports) == line


@given(st.frozensets(st.integers(1, 65535)))
def test_what_is_written_reads_back(ports: frozenset[int]) -> None:
    assert parse_ports(format_ports(ports).encode() + b"\n", Path("ip_local_reserved_ports")) == ports
