"""The log lines of the start and of the first poll: values in, lines out."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ephmon.facts.port_list import format_ports
from ephmon.log import Line

if TYPE_CHECKING:
    from ephmon.facts.snapshot import PortRange, Sysctls


def url_of(listen: str, *, is_tls: bool) -> str:
    """Return the URL of the status page; `listen` is HOST:PORT, IPv6 in brackets."""
    return f"{'https' if is_tls else 'http'}://{listen}/"


def external_url(host: str, listen: str, *, is_tls: bool) -> str:
    """Return the URL of the status page for other hosts, "" if ephmon listens on loopback or on any address."""
    address = ip_address(host)
    return "" if address.is_loopback or address.is_unspecified else url_of(listen, is_tls=is_tls)


def serving(version: str, listen: str, pid: int, *, is_tls: bool) -> Line:
    """Return where ephmon serves."""
    return Line(logging.INFO, f"ephmon {version} serves {url_of(listen, is_tls=is_tls)}metrics.", {"pid": pid})


def access_at_risk(
    host: str, listen: str, *, is_tls: bool, asks_for_certificate: bool, asks_for_token: bool
) -> Line | None:
    """Return a warning if others than this host's users may read everything, or read the token on its way."""
    if ip_address(host).is_loopback or asks_for_certificate:
        return None
    if not asks_for_token:
        return Line(
            logging.WARNING,
            "Everybody who reaches this address can read the destinations of this host. Listen on 127.0.0.1, or set "
            "http.token_file, or tls.certificate, tls.key and tls.client_ca.",
            {"listen": listen},
        )
    if not is_tls:
        return Line(
            logging.WARNING,
            "Clients send the token unencrypted, so it can be read on its way. Set tls.certificate and tls.key.",
            {"listen": listen},
        )
    return None


def not_seen(conntrack_entries: int | None, *, namespaces: int) -> Line:
    """Return what ephmon sees and does not see; some of the `conntrack_entries` may be forwarded connections."""
    if namespaces > 1:
        sees = f"ephmon sees the TCP sockets of {namespaces} network namespaces, and UDP in its own. It does not see "
    else:
        sees = (
            "ephmon sees the sockets of its own network namespace. It does not see pods and containers with their own, "
        )
    return Line(
        logging.INFO,
        f"{sees}forwarded or NATed connections, or port ranges of single sockets (IP_LOCAL_PORT_RANGE).",
        {"conntrack_entries": conntrack_entries or None},
    )


def listen_port_at_risk(port: int, sysctls: Sysctls) -> Line | None:
    """Return a warning if a connection may take the port that ephmon listens on."""
    low, high = sysctls.port_range
    if not low <= port <= high or port in sysctls.reserved_ports:
        return None
    return Line(
        logging.WARNING,
        "The port that ephmon listens on lies inside the port range, so a connection may take it when ephmon restarts. "
        "Reserve it: "
        f"sysctl -w net.ipv4.ip_local_reserved_ports={format_ports(sysctls.reserved_ports | {port})}",
        {"port": port, "port_range": f"{low}-{high}"},
    )


def source_ports_at_risk(source_ports: PortRange, sysctls: Sysctls) -> Line | None:
    """Return a warning if other connections may take ports of `notify.source_ports`."""
    low, high = max(source_ports.low, sysctls.port_range.low), min(source_ports.high, sysctls.port_range.high)
    exposed = set(range(low, high + 1)) - sysctls.reserved_ports
    if not exposed:
        return None
    return Line(
        logging.WARNING,
        f"Ports {format_ports(exposed)} of notify.source_ports lie inside the port range, so other connections may"
        " take them. "
        "Choose ports outside it, or reserve them: "
        f"sysctl -w net.ipv4.ip_local_reserved_ports={format_ports(exposed | sysctls.reserved_ports)}",
    )
