"""Which pool a destination on the command line stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.errors import UsageError
from ephmon.kernel.netlink.route import group_of, source_toward
from ephmon.kernel.own_address import require_own

if TYPE_CHECKING:
    from ephmon.config.endpoint import Address


def connect_source(destination: Address, port: int, source: Address | None) -> Address:
    """Return the source of a TCP connection: the one given, else the one that routing chooses.

    Raises:
        UsageError: No TCP connection leads there.
        KernelError: There is no route.
    """
    if group := group_of(destination):
        raise UsageError(f"{destination} is a {group} address: connect() of a TCP socket fails there with ENETUNREACH.")
    return source or source_toward(destination, port)


def check_from(source: Address | None, destination: Address) -> None:
    """Raise UsageError if --from and a destination do not go together; without a source they do."""
    if source is None:
        return
    if source.version != destination.version:
        raise UsageError(f"--from {source} and {destination} are of different families.")
    if source.is_unspecified:
        raise UsageError(f"--from {source} is every address; name one, or leave it out.")


def check_source(option: str, source: Address) -> None:
    """Raise UsageError for a source that no host can have, KernelError for one that this host does not have."""
    if group := group_of(source):
        raise UsageError(f"{option} {source} is a {group} address, which nothing is sent from; name one of this host.")
    require_own(source)
