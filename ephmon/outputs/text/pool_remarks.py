"""What decides about a pool beside its numbers, as sentences: named ports, devices, TCP timestamps of the peer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.facts.addresses import host_and_port
from ephmon.facts.foreign_text import printable

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import Pool


def pool_remarks(pool: Pool) -> tuple[str, ...]:
    """Return the sentences on one pool, none where its numbers say it all."""
    return tuple(filter(None, (_named_ports(pool), _devices(pool), _timestamps(pool))))


def _named_ports(pool: Pool) -> str:
    if not pool.application_chooses_ports:
        return ""
    return (
        f"{pool.named} of the {pool.live} live sockets of this pool named their port in bind(). "
        "The application's own list of ports decides how many more it opens. "
        f"What is left of the kernel's range, {pool.remaining} ports, is for sockets that leave the port to the kernel."
    )


def _devices(pool: Pool) -> str:
    if not pool.only_on_devices:
        return ""
    return (
        f"{pool.only_on_devices} of the ports in use are held by sockets that are bound to a device (SO_BINDTODEVICE). "
        "They stop only sockets that are bound to the same device. "
        f"For a socket that is bound to no device, {pool.remaining + pool.only_on_devices} ports are left."
    )


def _timestamps(pool: Pool) -> str:
    destination = printable(str(pool.key.destination))
    if pool.peer_timestamps is False and pool.time_wait:
        return (
            f"Live connections to {destination} use no TCP timestamps. "
            f"So the kernel reuses none of the {pool.time_wait} ports in TIME_WAIT."
        )
    if not pool.reusable_unproven:
        return ""
    end = host_and_port(destination, pool.key.destination_port or 0)
    return (
        f"{pool.reusable_unproven} ports in TIME_WAIT are reusable only if {destination} uses TCP timestamps, "
        f"which no live connection shows. `ss -tin dst {end}` prints `ts` for each that uses them."
    )
