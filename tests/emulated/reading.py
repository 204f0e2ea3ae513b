"""What the tests in an emulated machine ask of its kernel and of ephmon."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ephmon.kernel.deadline import Deadline
from ephmon.kernel.netlink.inet_diag import ALL_STATES, family_request, tcp_request
from ephmon.kernel.netlink.sock_diag import NetlinkError, Request, SockDiag
from tests import sockets
from tests.commands.answers import answer
from tests.ordinary_user import as_ordinary_user

if TYPE_CHECKING:
    from tests.commands.answers import Answer
    from tests.namespaces import Namespace

LOW, HIGH = 40_000, 40_999
PORTS = HIGH - LOW + 1
CONNECTIONS = 300
HERE, PORT = "127.0.0.1", 80
HANDLERS = {"inet_diag", "tcp_diag", "udp_diag"}
"""The modules that answer a dump of TCP and UDP sockets."""
BOTH_FAMILIES = tcp_request(ALL_STATES, [])
"""A dump in the way that takes one walk for IPv4 and IPv6, as ephmon asks for TCP."""
ONE_FAMILY = family_request(socket.IPPROTO_TCP, socket.AF_INET, ALL_STATES, [])
"""A dump in the way in which ephmon asks for UDP."""


def handlers_loaded() -> set[str]:
    """Return which of the modules that answer dumps the kernel has loaded."""
    lines = Path("/proc/modules").read_text(encoding="ascii").splitlines()
    return HANDLERS.intersection(line.split()[0] for line in lines)


def refusal(request: Request) -> int:
    """Ask for a dump and return the errno that the kernel refuses it with, 0 if it does not."""
    with SockDiag() as diag:
        try:
            diag.dump(request, lambda _length, _block: None, Deadline(20.0, time.monotonic))
        except NetlinkError as error:
            return error.errno
    return 0


def prepare(ns: Namespace) -> None:
    """Set a small port range, and open `CONNECTIONS` toward one destination."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    ns.call(sockets.listen, HERE, PORT, tag="server")
    assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=CONNECTIONS).count == CONNECTIONS


def pools(ns: Namespace) -> Any:
    """Return what `ephmon pools --json` prints in the namespace.

    It runs in the agent: on an emulated processor a new process takes three seconds to import ephmon.
    """
    return _parsed(ns.call(answer, "pools", "--json"))


def pools_of_ordinary_user(ns: Namespace) -> Any:
    """Return what it prints for a user without any privilege."""
    return _parsed(ns.call(as_ordinary_user, answer, "pools", "--json"))


def _parsed(result: Answer) -> Any:
    status, output, errors = result
    assert (status, errors) == (0, "")
    return json.loads(output)
