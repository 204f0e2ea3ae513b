"""The day that ephmon is built for: no port is left in the namespace, and the alert arrives."""

from __future__ import annotations

import errno

from ephmon.delivery.notification import Notification
from ephmon.delivery.settings import DeliverySettings, DeliveryTimes
from ephmon.facts.snapshot import PortRange
from ephmon.model.status import ReceiverKind
from tests.delivery import delivering
from tests.namespaces import Namespace
from tests.processes import eventually
from tests.sockets import ALL_PORTS, FillResult, Recipe, fill, open_sockets, write_sysctl

LOW, HIGH = 40000, 40999
ALERT = Notification(labels={"alertname": "EphmonPortsBlocked"}, starts_at=1_700_000_000.0)


def test_with_every_port_of_the_namespace_blocked_alerts_arrive_from_the_source_ports() -> None:
    settings = DeliverySettings(
        source_ports=PortRange(19102, 19117),
        alertmanager_urls=("http://localhost:9093",),
        webhook_url="http://[::1]:8080/hook",
    )
    with Namespace() as ns:
        ns.call(write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
        ns.call(delivering.receive, "alertmanager", 9093)
        ns.call(delivering.receive, "webhook", 8080, "::1")
        ns.call(delivering.start, settings, DeliveryTimes(pause_seconds=0.0, resend_seconds=0.05))
        for udp in (False, True):
            for address in ("0.0.0.0", "::"):
                blocking = Recipe(udp=udp, v6only=address == "::" or None, bind=(address, 0))
                blocked = ns.call(open_sockets, blocking, tag="blocking", limit=ALL_PORTS)

                assert blocked == FillResult(HIGH - LOW + 1, errno.EADDRINUSE)
        assert ns.call(fill, "127.0.0.1", 9093, tag="clients") == FillResult(0, errno.EADDRNOTAVAIL)

        ns.call(delivering.update, ALERT)

        # More than there are source ports, so that each has had its turn twice.
        resent = ns.call(delivering.wait_for_posts, "alertmanager", 33)
        (told,) = ns.call(delivering.wait_for_posts, "webhook", 1)
        assert {post.source_port for post in resent} | {told.source_port} == set(range(19102, 19118))
        status = eventually(lambda: ns.call(delivering.status), lambda status: not any(status.pending.values()))
        assert not any(status.failures[ReceiverKind.WEBHOOK].values())
        assert not any(status.failures[ReceiverKind.ALERTMANAGER].values())
