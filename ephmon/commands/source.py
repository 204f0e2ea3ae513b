"""The source address of the pool that a command asks about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.errors import UsageError
from ephmon.kernel.netlink.route import group_of, source_toward
from ephmon.kernel.own_address import require_own

if TYPE_CHECKING:
    from ephmon.config.endpoint import Address


def connect_source(destination: Address, port: int, source: Address | None) -> Address:
    """Return the source of a TCP connection: `source`, or if that is None, the address that routing chooses.

    Raises:
        UsageError: TCP cannot connect to the destination.
        KernelError: There is no route to the destination.
    """
    if group := group_of(destination):
        raise UsageError(f"{destination} is a {group} address: a TCP connect() to it fails with ENETUNREACH.")
    return source or source_toward(destination, port)


def require_matching_source(source: Address | None, destination: Address) -> None:
    """Raise UsageError if --from does not fit the destination; None fits every destination."""
    if source is None:
        return
    if source.version != destination.version:
        raise UsageError(f"--from {source} and {destination} belong to different families.")
    if source.is_unspecified:
        raise UsageError(f"--from {source} means any address; use one address, or leave out --from.")


def require_own_source(option: str, source: Address) -> None:
    """Require that this host can send from `source`.

    Raises:
        UsageError: No host can send from this address.
        KernelError: This host does not have the address.
    """
    if group := group_of(source):
        raise UsageError(
            f"{option} {source} is a {group} address, which cannot be a source; use an address of this host."
        )
    require_own(source)
