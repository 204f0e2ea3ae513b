"""Words and figures for people, the same in the table and on the page, and safe whatever a name contains."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ephmon.facts.addresses import host_and_port
from ephmon.facts.foreign_text import printable
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import Blindness
from ephmon.model.pools.connect_search import MANY_PORTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ephmon.model.alerting.thresholds import Severity
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.report import NamespaceReport, Report

_WHO_BLOCKS = "As root, `ss -tlnp` shows who listens, and `ss -tanp state all` shows who else holds a port."
_MOST_SEARCHES = 3
"""Of so many pools the table says how long a connect() searches."""
_ESTIMATE = "~ marks an estimate: some socket properties are not visible."


_BLINDNESS: dict[str, str] = {
    Blindness.BOUND_UNCONNECTED: "Bound TCP sockets without a connection are not visible: fewer ports may remain.",
    Blindness.BOUND_DEVICE: "The device of a socket is not visible: sockets of all devices are counted together.",
    Blindness.VRF: "Sockets are bound to a VRF: the ports of all VRFs are counted together.",
    Blindness.V6ONLY: "It is not visible whether a wildcard IPv6 socket also takes IPv4: each one counts for both.",
}

COLUMNS = ("KIND", "SOURCE", "DESTINATION", "UTIL%", "IN-USE", "TIME-WAIT", "REUSABLE", "REMAINING", "STATES")
"""The headings of `cells`."""


def one_line(text: str) -> str:
    """Return `text` printable and on one line, with each run of white space replaced by one space."""
    return printable(" ".join(text.split()))


def utc_time(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC, with milliseconds and `Z`.

    Raises:
        OverflowError, ValueError, OSError: The time is outside the years 1 to 9999 (`datetime.fromtimestamp`).
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def endpoint(address: str | None, port: int | None) -> str:
    """Return `10.0.0.9:443`, `[2001:db8::9]:443`, the bare address without a port, `-` without an address."""
    if address is None:
        return "-"
    if port is None:
        return printable(address)
    return host_and_port(printable(address), port)


def pool_name(key: PoolKey) -> str:
    """Return `tcp_connect from 10.0.0.1 to 10.0.0.9:443`, `tcp_bind at 10.0.0.1`."""
    where = "" if key.netns == OWN_NETNS else f" in {printable(key.netns)}"
    if key.destination is None:
        return f"{key.kind} at {printable(key.source)}{where}"
    return f"{key.kind} from {printable(key.source)} to {endpoint(key.destination, key.destination_port)}{where}"


def percent(ratio: float) -> str:
    """Return a ratio as a percentage with one decimal; `100.0` only from 1.0 on, when allocations fail."""
    rounded = f"{ratio * 100:.1f}"
    return "99.9" if rounded == "100.0" and ratio < 1.0 else rounded


def remaining(pool: Pool) -> str:
    """Return the remaining ports, marked with ~ unless the number is exact."""
    return str(pool.remaining) if pool.exact else f"~{pool.remaining}"


def explanations(pools: Sequence[Pool]) -> tuple[str, ...]:
    """Return the sentences that explain a table of the pools."""
    sentences = []
    if not all(pool.exact for pool in pools):
        sentences.append(_ESTIMATE)
    if any(pool.reusable for pool in pools):
        sentences.append(
            "REUSABLE ports are in TIME_WAIT, but the kernel gives them out again right now: they count as remaining."
        )
    if any(pool.is_doubted for pool in pools):
        sentences.append("Where connect() failed lately and ports are in doubt, REMAINING is the lower bound.")
    sentences += long_searches(pools)
    exhausted = dict.fromkeys(
        (pool.key.kind, pool.failure_errno) for pool in pools if pool.utilisation >= 1.0 and not pool.is_doubted
    )
    sentences += [f"At 100.0 the next {printable(kind)} fails with {printable(errno)}." for kind, errno in exhausted]
    return tuple(sentences)


def long_searches(pools: Iterable[Pool]) -> list[str]:
    """Return a sentence for each of the pools whose connect() looks at many ports, for so many of them."""
    slow = (pool for pool in pools if (pool.search_ports or 0) >= MANY_PORTS and pool.remaining)
    worst = sorted(slow, key=lambda pool: -(pool.search_ports or 0))
    return [search_sentence(pool) for pool in worst[:_MOST_SEARCHES]]


def search_sentence(pool: Pool) -> str:
    """Return how many ports a connect() of a tcp_connect pool looks at."""
    return f"Each connect() of {pool_name(pool.key)} looks at about {pool.search_ports:.0f} ports to find one."


def cells(pool: Pool) -> tuple[str, ...]:
    """Return the row of a pool under `COLUMNS`."""
    key = pool.key
    return (
        printable(key.kind),
        printable(key.source),
        endpoint(key.destination, key.destination_port),
        percent(pool.utilisation),
        str(pool.in_use),
        str(pool.time_wait),
        str(pool.reusable),
        remaining(pool),
        ", ".join(f"{printable(state)} {count}" for state, count in pool.states.items()) or "-",
    )


def grid(pools: Sequence[Pool]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and rows; the namespace is a column only if there is another one than ephmon's own."""
    rows = [cells(pool) for pool in pools]
    if all(pool.key.netns == OWN_NETNS for pool in pools):
        return COLUMNS, rows
    names = (printable(pool.key.netns) for pool in pools)
    return ("NETNS", *COLUMNS), [(name, *row) for name, row in zip(names, rows, strict=True)]


def existing_pools(report: Report) -> int:
    """Return how many pools exist, listed or not."""
    return report.pools_elsewhere + sum(sum(namespace.pools.values()) for namespace in report.namespaces)


def failures(report: Report) -> tuple[str, ...]:
    """Return a sentence for each failure, the failed poll first."""
    sentences = []
    if report.error is not None:
        sentences.append(f"The last poll failed: {one_line(report.error)}")
    if report.taken_at is None:
        sentences.append("The kernel has not been read successfully yet, so there are no figures.")
    if report.reload.error is not None:
        sentences.append(f"The last reload failed, the old configuration is in force: {one_line(report.reload.error)}")
    return tuple(sentences)


def exhaustion(report: Report) -> tuple[str, ...]:
    """Return a sentence for each namespace that may alert and in which no connect() gets a port, wherever to."""
    sentences = []
    for namespace in report.namespaces:
        if not namespace.may_alert:
            continue
        usable, reserved = namespace.usable_ports, namespace.reserved_ports
        if not usable:
            sentences.append(f"No port{_of(namespace)} is usable: all {reserved} ports of the range are reserved.")
        elif namespace.blocked and namespace.blocked.leave_none:
            sentences.append(
                f"No port{_of(namespace)} is left for any connect(): all {usable} usable ports are blocked."
            )
    return tuple(sentences)


def gaps(report: Report) -> tuple[str, ...]:
    """Return a sentence for each protocol that could not be read, then for each socket property that is not visible."""
    missing = (f"{one_line(protocol)} is missing: {one_line(reason)}" for protocol, reason in report.missing.items())
    return (*missing, *blindness(word for namespace in report.namespaces for word in namespace.blind_to))


def blindness(words: Iterable[str]) -> tuple[str, ...]:
    """Return a sentence for each word of `blind_to`."""
    return tuple(_BLINDNESS.get(word, f"Not visible: {one_line(word)}.") for word in dict.fromkeys(words))


def facts(report: Report) -> tuple[tuple[str, Severity | None], ...]:
    """Return sentences about the port ranges, then one with the time and the backends of the poll.

    Of the namespaces beside our own, only those have a sentence in which blocked ports have reached a severity. The
    sentence of a range comes with that.
    """
    severities = {one.netns: _severity(report, one) for one in report.namespaces if one.may_alert}
    ranges = [
        (range_sentence(namespace), severities.get(namespace.netns))
        for namespace in report.namespaces
        if namespace.netns == OWN_NETNS or severities.get(namespace.netns)
    ]
    if any(severities.get(namespace.netns) and namespace.blocked_ports for namespace in report.namespaces):
        ranges.append((_WHO_BLOCKS, None))
    if report.namespaces_read > 1:
        others = report.namespaces_read - 1
        noun = "network namespace" if others == 1 else "network namespaces"
        ranges.append((f"TCP of {others} other {noun} is read too, and no UDP there.", None))
    if report.taken_at is not None:
        backends = (f"{printable(protocol)} through {printable(name)}" for protocol, name in report.backends.items())
        ranges.append((f"Read at {utc_time(report.taken_at)}: {', '.join(backends) or 'no protocol'}.", None))
    return tuple(ranges)


def _severity(report: Report, namespace: NamespaceReport) -> Severity | None:
    """Return the severity of the blocked ports, None if TCP could not be read."""
    return namespace.blocked.severity(report.thresholds) if namespace.blocked else None


def _of(namespace: NamespaceReport) -> str:
    return "" if namespace.netns == OWN_NETNS else f" of {printable(namespace.netns)}"


def range_sentence(namespace: NamespaceReport) -> str:
    """Return the port range of a namespace, and how many of its ports are usable, blocked and ambiguous."""
    low, high = namespace.sysctls.port_range
    return (
        f"Ports{_of(namespace)} {low}-{high}: {namespace.usable_ports} usable"
        f" ({namespace.reserved_ports} reserved), {_count(namespace.blocked_ports)} blocked for connect(),"
        f" {_count(namespace.ambiguous_ports)} ambiguous."
    )


def _count(number: int | None) -> str:
    return "unknown" if number is None else str(number)
