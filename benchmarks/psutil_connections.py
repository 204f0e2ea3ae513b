"""psutil as a contender: the other way to list sockets from Python."""

from __future__ import annotations

import psutil

from benchmarks.measurement import Cost, memory, spent


class PsutilConnections:
    """psutil.net_connections, which also looks through the descriptors of all processes."""

    def run(self) -> Cost:
        """List once."""
        return spent(lambda: psutil.net_connections("tcp"))

    def peak_bytes(self) -> int:
        """Return the peak of this process."""
        return memory("self", "VmHWM")
