"""EphmonConnectSlow begins and ends on a real kernel: connections and measurement are real, only the clock is not."""

from __future__ import annotations

from ephmon.config.settings import parse
from ephmon.outputs.text.alerts import sentence
from tests import sockets
from tests.daemon.simulated_hours import Watched
from tests.namespaces import Namespace, bring_loopback_up
from tests.sockets import FillResult

HERE, PORT = "127.0.0.1", 80
RANGE = (30_000, 34_095)
HALF = 2_048
INTERVAL_SECONDS = 5.0
OPENS = 100
"""Connections between two polls. At 20 in a second, searches of 2,048 ports take some 0.2 % of a core."""
CONFIG = "alerts: {connect_search_share: 0.0001}"


def sentences_of_a_load(polls: int) -> list[list[str]]:
    """Return what alerts say at so many polls before, during and after a load of new connections."""
    bring_loopback_up()
    sockets.write_sysctl("net.ipv4.ip_local_port_range", "{} {}".format(*RANGE))
    sockets.write_sysctl("net.core.somaxconn", 65_535)
    sockets.listen(HERE, PORT, tag="server", backlog=65_535)
    assert sockets.fill(HERE, PORT, tag="held", limit=HALF) == FillResult(HALF, 0)
    watched, said = Watched(parse(CONFIG, "test")), []
    for opens in (0, OPENS, 0):
        for _ in range(polls):
            assert sockets.fill(HERE, PORT, tag="opened", limit=opens) == FillResult(opens, 0)
            watched.poll_after(INTERVAL_SECONDS)
            said.append([sentence(alert) for alert in watched.report.alerts.firing])
    return said


def test_it_begins_with_a_load_of_new_connections_and_ends_with_it() -> None:
    with Namespace() as ns:
        said = ns.call(sentences_of_a_load, 6)
    before, during, after = said[:6], said[6:12], said[12:]

    assert before == [[]] * 6
    assert during[-1][0].startswith(
        f"Each connect() of tcp_connect from {HERE} to {HERE}:{PORT} looks at about 2049 ports to find one. That takes"
    )
    assert after[0] != []
    assert after[-1] == []
