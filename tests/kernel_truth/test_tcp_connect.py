"""What tcp_connect pools there are and what they say of their sockets, beside the number that the experiments prove."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests import sockets
from tests.kernel_truth.experiment import (
    HERE,
    LOW,
    PORT,
    PORTS,
    check_that_each_port_was_drawn,
    leave_time_wait,
    prepare,
)
from tests.kernel_truth.prediction import destinations, predict
from tests.sockets import Recipe

if TYPE_CHECKING:
    from tests.namespaces import Namespace

CLIENT = "127.0.0.3"


def test_an_inbound_server_in_the_range_makes_no_destinations(agent: Namespace) -> None:
    """A server whose listening port lies in the range has 900 peers, none of which it connected to."""
    agent.call(prepare)
    agent.call(sockets.listen, "0.0.0.0", LOW + 7, tag="inside")
    agent.call(sockets.fill, HERE, LOW + 7, tag="inbound", limit=900, source=CLIENT)
    agent.call(sockets.accept_all, "inside", tag="accepted")

    assert agent.call(destinations) == {(HERE, LOW + 7)}
    assert agent.call(predict, HERE, LOW + 7, CLIENT).held == 900
    assert agent.call(predict, HERE, PORT, HERE).blocked == 1


def test_a_pool_says_what_its_sockets_do(agent: Namespace) -> None:
    agent.call(prepare)
    agent.call(sockets.fill, HERE, PORT, tag="open", limit=30)
    agent.call(leave_time_wait, 20, Recipe(connect=(HERE, PORT)))

    assert agent.call(predict, HERE, PORT, HERE).states == {"established": 30, "time_wait": 20}


def test_sockets_on_a_device_count_once_for_each_port(agent: Namespace) -> None:
    """Two sockets of one port are held once, and in use once, but are two sockets."""
    agent.call(prepare)
    agent.call(sockets.open_sockets, Recipe(device="lo", connect=(HERE, PORT), wait=False), tag="drawn", limit=PORTS)
    agent.call(sockets.open_sockets, Recipe(connect=(HERE, PORT), wait=False), tag="drawn", limit=PORTS)
    agent.call(check_that_each_port_was_drawn, 2)
    pool = agent.call(predict, HERE, PORT, HERE)

    assert (pool.in_use, pool.remaining, pool.held) == (PORTS, 0, PORTS)
    assert sum(pool.states.values()) == 2 * PORTS
