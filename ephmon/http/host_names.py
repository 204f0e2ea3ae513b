"""Which hosts a request may name: the defence against DNS rebinding.

The page of an attacker can have the attacker's own name point at the address of ephmon. The browser then takes the
answers of ephmon for that page's own and lets its scripts read them. But the browser still sends the attacker's name in
the Host header. So ephmon answers only to addresses and to names that an attacker cannot have.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.http.request import normal_name
from ephmon.regular_file import FileVersion, UnreadableFileError, file_version, read_regular_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOCALHOST = "localhost"
HOSTS_FILE = Path("/etc/hosts")
_MAX_BYTES = 8 << 20
"""Of /etc/hosts: lists of names to block fill some megabytes."""


def is_address(host: str) -> bool:
    """Tell whether a host is an address literal. A browser that asks for one has not looked up a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_listed(host: str, names: Iterable[str]) -> bool:
    """Tell whether a host is one of the names, or lies below a domain that is written as `*.example.net`."""
    return any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in names)


def own_names(hostname: str, hosts_file: str) -> frozenset[str]:
    """Return the names of this host that are known without DNS.

    They are the hostname, its first label, and the other names on lines of /etc/hosts that have the hostname (man 5
    hosts), where the full name stands. Lines with localhost are left out, because block lists put names of strangers
    there.
    """
    hostname = normal_name(hostname)
    names = {hostname, hostname.partition(".")[0]}
    for line in hosts_file.splitlines():
        aliases = {normal_name(name) for name in line.partition("#")[0].split()[1:]}
        if hostname in aliases and LOCALHOST not in aliases:
            names |= aliases
    return frozenset(names - {""})


class OwnNames:
    """The names of this host as they are now: a change of the hostname or of /etc/hosts counts at once."""

    def __init__(self, hosts_file: Path = HOSTS_FILE, hostname: Callable[[], str] = socket.gethostname) -> None:
        self._hosts_file = hosts_file
        self._hostname = hostname
        self._read_as: tuple[str, FileVersion | None] | None = None
        self._names: frozenset[str] = frozenset()

    def current(self) -> frozenset[str]:
        """Return the names, read again only if something has changed."""
        read_as = (self._hostname(), file_version(self._hosts_file))
        if read_as != self._read_as:
            self._names = own_names(read_as[0], self._hosts_text())
            self._read_as = read_as
        return self._names

    def _hosts_text(self) -> str:
        try:
            return read_regular_file(self._hosts_file, _MAX_BYTES).decode("utf-8", "replace")
        except UnreadableFileError:
            return ""
