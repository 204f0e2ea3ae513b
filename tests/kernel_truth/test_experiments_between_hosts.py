"""The experiments that need a second host: the client's namespace is connected with a server's by a pair of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.kernel_truth.differences import let_time_waits_grow_old
from tests.kernel_truth.experiment import HIGH, LOW, PORTS, Draw, carry_out_draw
from tests.kernel_truth.test_experiments import check
from tests.namespaces import Namespace, connect, ip
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
CLIENT_V6, SERVER_V6 = "fd09::1", "fd09::2"
NOBODY = "10.99.0.1"
PORT = 80


@pytest.fixture(name="hosts")
def _hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """A client with the small port range, and a server; both have an address of each family."""
    with Namespace() as client, Namespace(beside=client) as server:
        connect(client, server, addresses=(f"{CLIENT}/24", f"{SERVER}/24"))
        client.add_address(f"{CLIENT_V6}/64", device="veth0")
        server.add_address(f"{SERVER_V6}/64", device="veth0")
        client.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
        client.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
        yield client, server


def toward(destination: str, source: str, gives: int, *, wait: bool = True) -> Draw:
    recipe = Recipe(connect=(destination, PORT), wait=wait)
    return Draw(kind=PoolKind.TCP_CONNECT, source=source, destination=(destination, PORT), recipe=recipe, gives=gives)


@pytest.mark.parametrize(("reuse", "gives"), [(0, 0), (1, PORTS), (2, 0)], ids=["row-30-0", "row-30-1", "row-30-2"])
def test_time_wait_between_hosts_is_reused_only_if_always(
    hosts: tuple[Namespace, Namespace], reuse: int, gives: int
) -> None:
    """How many of them is not certain: whether the peer had timestamps cannot be seen."""
    here, there = hosts
    here.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", reuse)
    for number, draw in enumerate((toward(SERVER, CLIENT, gives), toward(SERVER_V6, CLIENT_V6, gives))):
        leave_time_wait(here, there, draw, number)
        outcome = here.call(carry_out_draw, draw)

        check(outcome)
        assert outcome.before.time_wait == PORTS
        assert outcome.before.remaining_min == 0


def leave_time_wait(here: Namespace, there: Namespace, draw: Draw, number: int) -> None:
    """Fill the pool with TIME_WAITs on the client's side."""
    leaving, accepted, server = (f"{what} {number}" for what in ("leaving", "accepted", "server"))
    assert draw.destination is not None
    there.call(sockets.listen, *draw.destination, tag=server)
    assert here.call(sockets.open_sockets, draw.recipe, tag=leaving, limit=PORTS).count == PORTS
    assert there.call(sockets.accept_all, server, tag=accepted) == PORTS
    here.call(sockets.close, leaving)
    there.call(sockets.close, accepted)
    here.call(let_time_waits_grow_old)


@pytest.mark.parametrize("already", [0, 700], ids=["row-19", "row-19-700-before"])
def test_a_handshake_without_answer_takes_a_port(hosts: tuple[Namespace, Namespace], already: int) -> None:
    here, _ = hosts
    # The neighbour is known and nobody has this address behind it: a SYN goes out and nothing comes back.
    here.call(ip, "route", "add", "10.99.0.0/16", "via", SERVER)
    draw = toward(NOBODY, CLIENT, PORTS - already, wait=False)
    here.call(sockets.open_sockets, draw.recipe, tag="waiting", limit=already)
    outcome = here.call(carry_out_draw, draw)

    check(outcome)
    assert outcome.after.states == {"syn_sent": PORTS}
