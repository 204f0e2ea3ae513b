"""One pool as lines of text: the number, how it is calculated, what fails when it reaches 0, and what else decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.pools.kinds import PoolKind
from ephmon.outputs.text.pool_remarks import pool_remarks
from ephmon.outputs.text.wording import endpoint

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import Pool

_WHAT_FAILS = {
    PoolKind.TCP_CONNECT: "Then connect() fails with {errno}. Blocked ports count for every destination.",
    PoolKind.TCP_BIND: (
        "Then bind() to port 0 fails with {errno}. Each such socket also takes a port from every plain connect()."
    ),
    PoolKind.UDP_CONNECT: "Then connect() or sendto() fails with {errno}, for every destination.",
    PoolKind.UDP_BIND: "Then bind() to port 0 fails with {errno}, for every destination.",
}


_DUAL_STACK = "::"
"""The source of sockets that also use IPv4, unless they set IPV6_V6ONLY (man 7 ipv6)."""


def render(pool: Pool) -> str:
    """Return three lines, and one for each remark, each with a newline at its end."""
    what_fails = _WHAT_FAILS[pool.key.kind].format(errno=pool.failure_errno)
    return "\n".join([_number(pool), _sum(pool), what_fails, *pool_remarks(pool)]) + "\n"


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
    if pool.remaining_min == pool.remaining_max and pool.application_chooses_ports:
        return " (for sockets that leave the port to the kernel)"
    if pool.remaining_min == pool.remaining_max:
        return " (an estimate, because this kernel or backend does not show every socket)"
    return f" (an estimate: at least {pool.remaining_min}, at most {pool.remaining_max})"


def _sum(pool: Pool) -> str:
    parts = [f"{pool.usable} usable ports", f"- {pool.blocked} blocked" if pool.blocked else ""]
    parts.append(f"- {pool.in_use} in use" + (f" ({pool.time_wait} in TIME_WAIT)" if pool.time_wait else ""))
    parts.append(f"+ {pool.reusable} of them reusable" if pool.reusable else "")
    return " ".join(filter(None, parts)) + f" = {pool.remaining}."
