"""Whether peers use TCP timestamps is asked beside a poll, which does not fail because there is no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.config.settings import parse
from ephmon.errors import KernelError, Reason
from ephmon.kernel.source import SocketSource
from tests import sockets
from tests.daemon.simulated_hours import ADDRESSES, PORT, SERVERS, Watched, prepare
from tests.namespaces import Namespace
from tests.sockets import FillResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.timestamps import TimestampQuestion


def poll_without_answers() -> tuple[int, bool | None, int]:
    """Return how many questions were refused, what is known of the peer then, and how many ports of the pool remain."""
    prepare()
    sockets.write_sysctl("net.ipv4.tcp_tw_reuse", 1)
    assert sockets.fill(SERVERS[0], PORT, tag="leaving", limit=5) == FillResult(5, 0)
    sockets.accept_all("servers", tag="left")
    sockets.close("leaving")
    sockets.close("left")
    assert sockets.fill(SERVERS[0], PORT, tag="staying", limit=12) == FillResult(12, 0)
    refused: list[TimestampQuestion] = []

    class Source(SocketSource):
        def read_timestamps(
            self, questions: Sequence[TimestampQuestion], deadline_seconds: float
        ) -> dict[ConnectKey, list[bool]]:
            refused.extend(questions)
            raise KernelError(f"Not within {deadline_seconds} s.", reason=Reason.DEADLINE)

    watched = Watched(parse("", "test"), Source)
    watched.poll_after(5.0)
    (pool,) = [one.pool for one in watched.report.listed if one.pool.key.destination == SERVERS[0]]
    return len(refused), pool.peer_timestamps, pool.remaining


def test_a_poll_goes_on_where_nobody_answers_about_timestamps() -> None:
    with Namespace(addresses=ADDRESSES) as ns:
        refused, timestamps, remaining = ns.call(poll_without_answers)

    assert refused == 1
    assert timestamps is None
    assert remaining >= 183
