"""The class of every port, as the kernel's bind table has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.facts.bind_counts import PortFlag
from ephmon.model.pools.port_classes import PortClass, TcpPorts, usable_ports

if TYPE_CHECKING:
    from ephmon.facts.bind_table import NamespaceBinds


def classes_of(binds: NamespaceBinds) -> TcpPorts:
    """Return the class of every port outside any VRF: shared or blocked, never in doubt."""
    classes = usable_ports(binds.sysctls)
    for port in binds.ports_with(PortFlag.BLOCKED):
        classes[port] = PortClass.BLOCKED
    return TcpPorts.of(bytes(classes), frozenset())
