"""One pool in three lines, for a person: the number, what makes it up, and what fails once it is used up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.pools.kinds import PoolKind
from ephmon.outputs.text.wording import endpoint

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import Pool

_WHAT_FAILS = {
    PoolKind.TCP_CONNECT: "connect() then fails with {errno}; ports blocked for it are so toward every destination.",
    PoolKind.TCP_BIND: (
        "bind() to port 0 then fails with {errno}; each such socket also takes a port from every plain connect()."
    ),
    PoolKind.UDP_CONNECT: "connect() or sendto() then fails with {errno}, toward every destination.",
    PoolKind.UDP_BIND: "bind() to port 0 then fails with {errno}, whatever the destination.",
}


_DUAL_STACK = "::"
"""The source that takes IPv4 too, unless the socket is IPV6_V6ONLY."""


def render(pool: Pool) -> str:
    """Return the three lines, each ended by a newline."""
    return "\n".join([_number(pool), _sum(pool), _WHAT_FAILS[pool.key.kind].format(errno=pool.failure_errno)]) + "\n"


def _number(pool: Pool) -> str:
    key = pool.key
    source = endpoint(key.source, None)
    dual_stack = "dual-stack " if key.source == _DUAL_STACK else ""
    target = {
        PoolKind.TCP_CONNECT: f"connections from {source} to {endpoint(key.destination, key.destination_port)}",
        PoolKind.TCP_BIND: f"{dual_stack}TCP sockets bound to {source} and any port",
        PoolKind.UDP_CONNECT: f"{dual_stack}UDP sockets from {source} to any destination",
        PoolKind.UDP_BIND: f"{dual_stack}UDP sockets bound to {source} and any port",
    }[key.kind]
    return f"{pool.remaining} more {target}{_certainty(pool)}."


def _certainty(pool: Pool) -> str:
    if pool.exact:
        return ""
    if pool.remaining_min == pool.remaining_max:
        return " by estimate, because this kernel or backend does not show every socket"
    return f" by estimate, at least {pool.remaining_min} and at most {pool.remaining_max}"


def _sum(pool: Pool) -> str:
    parts = [f"{pool.usable} usable ports", f"- {pool.blocked} blocked" if pool.blocked else ""]
    parts.append(f"- {pool.in_use} in use" + (f" ({pool.time_wait} in TIME_WAIT)" if pool.time_wait else ""))
    parts.append(f"+ {pool.reusable} of them reusable" if pool.reusable else "")
    return " ".join(filter(None, parts)) + f" = {pool.remaining}."
