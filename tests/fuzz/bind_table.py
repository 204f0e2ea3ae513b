"""The memory that the BPF program leaves of a walk over the kernel's bind table."""

from __future__ import annotations

import struct

from ephmon.errors import KernelError
from ephmon.facts.addresses import V4_BYTES, V6_BYTES
from ephmon.kernel.bpf.reader import Control, parse_bind_table
from tests.fuzz.target import RECORDED, Target, answer

_CONTROL = struct.Struct("=Q22I")
_BYTES = {"namespaces": 88, "pools": 128, "ports": 16, "bitmaps": 8192}


def check_bind_table(data: bytes) -> None:
    """Read a walk: struct control, and as many of each structure behind it as that says; what is missing is zero."""
    control = Control(*_CONTROL.unpack(data[: _CONTROL.size].ljust(_CONTROL.size, b"\0")))
    maps, start = {}, _CONTROL.size
    for name, size in _BYTES.items():
        end = start + min(getattr(control, name), 64) * size
        maps[name] = data[start:end].ljust(end - start, b"\0")
        start = end
    table = answer(KernelError, parse_bind_table, control, maps)
    if table is None:
        return
    for one in table.namespaces:
        assert max(one.outside) == one.outside.in_use <= one.usable
        assert one.usable <= one.sysctls.port_range.size
        for key, counts in one.pools():
            assert {len(key.source), len(key.destination)} <= {V4_BYTES, V6_BYTES}
            assert counts.reusable <= counts.time_wait <= counts.held
        assert len(list(one.pools())) + len(list(one.addresses())) <= control.pools
        assert one.blocked_ports <= {bound.port for bound in one.ports()}


TARGETS = (
    Target(
        name="bind_table",
        parsers=("kernel.bpf.reader.parse_bind_table",),
        check=check_bind_table,
        seeds=lambda: [(RECORDED / "bind_table.bin").read_bytes()],
        max_bytes=16_384,
    ),
)
