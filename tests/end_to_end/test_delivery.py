"""Alerts on their whole way: real sockets, the daemon as a process, and receivers that are told, in one namespace."""

from __future__ import annotations

import errno
import itertools
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from ephmon.cli import main
from ephmon.daemon import extras
from ephmon.delivery import service
from ephmon.delivery.settings import DeliveryTimes
from tests import sockets
from tests.delivery import delivering
from tests.delivery.alertmanagers import HOOK, HOOK_PORT, alertmanager, alerts, moment
from tests.namespaces import Namespace
from tests.processes import WAIT_SECONDS, Running, ephmon, eventually, put, python, run
from tests.sockets import ALL_PORTS, FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.delivery.receivers import Received

HERE, PORT, OTHER_PORT = "127.0.0.1", 80, 81
ALERTMANAGER = "http://127.0.0.1:9093"
PORTS = 1000
RANGE = f"40000 {40000 + PORTS - 1}"
QUICK = """\
poll: {interval: 100ms, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}
pools: {ignore_destinations: ["127.0.0.1:19100"]}
"""
"""The tests' own requests leave TIME_WAITs toward the daemon, many within a second."""
AT_ONCE = "warning: {for: 0s, clear: 0.01}, critical: {clear: 0.01}"
"""Thresholds by which a pool that empties is no matter for alerts before it is empty, whenever polls look at it."""
RESEND_SECONDS = 0.2
STAYING, FIRST, SECOND = 8081, 8082, 8083
"""Where receivers listen: one that stays, one that is exchanged, and the one that takes its place."""
REFUSED = 'ephmon_notifications_failed_total{reason="connection",receiver="alertmanager"}'
TAKEN_OVER = "ephmon_config_last_reload_success_timestamp_seconds"
Told = tuple[str, str]
"""An alert as a receiver hears of it: in short, and how it fares."""


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", RANGE)
        for port in (PORT, OTHER_PORT):
            ns.call(sockets.listen, HERE, port, tag="servers")
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    """A file that has alerts sent to an Alertmanager."""
    notify = f'notify: {{labels: {{team: network}}, alertmanager: {{urls: ["{ALERTMANAGER}"]}}}}\n'
    return put(tmp_path / "config.yaml", f"{QUICK}thresholds: {{{AT_ONCE}}}\n{notify}")


def quick_ephmon(config: Path, resend_seconds: float = RESEND_SECONDS) -> list[str]:
    """Return the command line of `ephmon run` with deliveries that do not pause for seconds."""
    call = "import sys; from tests.end_to_end.test_delivery import serve; serve(sys.argv[1], float(sys.argv[2]))"
    return python("-c", call, str(config), str(resend_seconds))


def serve(config: str, resend_seconds: float) -> None:
    """Run the command in this process."""
    times = DeliveryTimes(pause_seconds=0.05, resend_seconds=resend_seconds, first_retry_seconds=0.05)

    class Delivery(service.Delivery):
        def __init__(self, *, wall_clock: Callable[[], float], clock: Callable[[], float]) -> None:
            super().__init__(times=times, wall_clock=wall_clock, clock=clock)

    extras.Delivery = Delivery  # type: ignore[attr-defined, assignment]  # the class that the daemon uses
    sys.exit(main(["run", "--config", config]))


def connect(ns: Namespace, number: int, port: int = PORT) -> None:
    """Open so many connections, closed by `sockets.abort` of the tag `clients`; ephmon is certain of their ports."""
    assert ns.call(sockets.fill, HERE, port, tag="clients", limit=number, source=HERE) == FillResult(number, 0)


def labels(severity: str) -> dict[str, str]:
    """Return the labels of the alert on the pool that `connect` fills."""
    return {
        "alertname": "EphmonPoolNearExhaustion",
        "severity": severity,
        "netns": "own",
        "kind": "tcp_connect",
        "source": HERE,
        "destination": HERE,
        "destination_port": str(PORT),
        "team": "network",
    }


def in_short(document: dict[str, Any]) -> list[Told]:
    """Return the alerts of a document as a webhook gets it, by severity and port."""
    told = [(alert["labels"], alert["status"]) for alert in document["alerts"]]
    return sorted((f"{of['severity']} {of['destination_port']}", status) for of, status in told)


def news(told: Iterable[list[Told]]) -> list[list[Told]]:
    """Return what each document says that none before it has said: Alertmanager repeats what it hears is over."""
    known: set[Told] = set()
    found = []
    for document in told:
        found.append([alert for alert in document if alert not in known])
        known |= set(document)
    return found


def wait_for_alerts(ns: Namespace, holds: Callable[[list[dict[str, Any]]], bool] = bool) -> Sequence[dict[str, Any]]:
    """Wait until it holds of what Alertmanager has, and return that."""
    return eventually(lambda: alerts(ns), holds)


def documents(ns: Namespace, hook: int, number: int) -> list[dict[str, Any]]:
    """Wait until a webhook got so many documents, and return them."""
    posts: Sequence[Received] = ns.call(delivering.wait_for_posts, str(hook), number)
    return [post.document for post in posts]


def test_a_pool_that_fills_and_empties_is_announced_step_by_step(ns: Namespace, tmp_path: Path, config: Path) -> None:
    """Nothing is resent, so that the end is one because ephmon says so, and not for want of messages."""
    ns.call(delivering.receive, HOOK, HOOK_PORT)
    connect(ns, 750)
    with alertmanager(ns, tmp_path / "am"), Running(ns, quick_ephmon(config, resend_seconds=3600)):
        ns.call(delivering.wait_for_posts, HOOK, 1)
        (warning,) = wait_for_alerts(ns)
        connect(ns, 200)
        ns.call(delivering.wait_for_posts, HOOK, 2)
        (critical,) = wait_for_alerts(ns, lambda found: len(found) == 1)
        ns.call(sockets.abort, "clients")
        announced = [post.document for post in ns.call(delivering.wait_for_posts, HOOK, 3)]

    assert warning["labels"] == labels("warning")
    assert "is at 75.0%: 250 of 1000 ports are left." in warning["annotations"]["description"]
    assert warning["annotations"]["summary"] == "A pool of local ports is almost used up."
    assert critical["labels"] == labels("critical")
    assert [document["status"] for document in announced] == ["firing", "firing", "resolved"]
    assert news(map(in_short, announced)) == [
        [("warning 80", "firing")],
        [("critical 80", "firing"), ("warning 80", "resolved")],
        [("critical 80", "resolved")],
    ]


def test_an_alert_is_refreshed_and_outlives_an_alertmanager_that_forgets_it(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    connect(ns, 750)
    with Running(ns, quick_ephmon(config)) as daemon:
        with alertmanager(ns, tmp_path / "am") as process:
            (arrived,) = wait_for_alerts(ns)
            # Later by more than one message can make it, and nothing but further ones can have made it so.
            enough = moment(arrived["endsAt"]) + 4 * RESEND_SECONDS
            (refreshed,) = wait_for_alerts(ns, lambda found: moment(found[0]["endsAt"]) > enough)
            process.signal(signal.SIGKILL)
        refused = daemon.metrics().get(REFUSED, 0.0)
        eventually(daemon.metrics, lambda metrics: metrics.get(REFUSED, 0.0) > refused)
        with alertmanager(ns, tmp_path / "one without memory"):
            (again,) = wait_for_alerts(ns)
        daemon.stop()

    assert len({alert["startsAt"] for alert in (arrived, refreshed, again)}) == 1
    assert [alert["labels"] for alert in (arrived, refreshed, again)] == [labels("warning")] * 3
    assert len([line for line in daemon.lines if " fires as " in line]) == 1


def test_with_every_port_of_the_namespace_blocked_the_alert_arrives(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    for address in ("0.0.0.0", "::"):
        blocking = Recipe(bind=(address, 0), v6only=address == "::" or None)
        blocked = ns.call(sockets.open_sockets, blocking, tag="blocking", limit=ALL_PORTS)
        assert blocked == FillResult(PORTS, errno.EADDRINUSE)
    assert ns.call(sockets.fill, HERE, PORT, tag="clients") == FillResult(0, errno.EADDRNOTAVAIL)

    with alertmanager(ns, tmp_path / "am"), Running(ns, ephmon("run", "--config", config)):
        found = wait_for_alerts(ns)

    expected = {"alertname": "EphmonPortsBlocked", "severity": "critical", "netns": "own", "team": "network"}
    assert expected in [alert["labels"] for alert in found]


def reloading(webhook: int, max_active: int) -> str:
    """Return a file by which alerts toward OTHER_PORT wait two seconds before they fire."""
    return (
        f"{QUICK}thresholds: {{{AT_ONCE}, overrides: [{{destination_port: {OTHER_PORT}, warning: {{for: 2s}}}}]}}\n"
        f"alerts: {{max_active: {max_active}}}\n"
        "notify:\n"
        "  labels: {team: network}\n"
        f'  alertmanager: {{urls: ["http://{HERE}:{STAYING}"]}}\n'
        f'  webhook: {{url: "http://{HERE}:{webhook}/hook"}}\n'
    )


def refusal_of(daemon: Running, config: Path, text: str) -> str:
    """Have the daemon refuse another file, and return what it says to that."""
    put(config, text)
    daemon.signal(signal.SIGHUP)
    return daemon.wait_for_line("The configuration is kept as it was")


def reload(daemon: Running, config: Path, text: str) -> None:
    """Have the daemon take another file. The log tells of 60 in a minute at most."""
    before = daemon.metrics()[TAKEN_OVER]
    put(config, text)
    daemon.signal(signal.SIGHUP)
    eventually(daemon.metrics, lambda metrics: metrics[TAKEN_OVER] > before)


def test_a_hundred_reloads_lose_no_alert_and_none_that_is_pending(ns: Namespace, config: Path) -> None:
    """They come all the time during polls and deliveries, until what is pending fires in spite of them."""
    for hook in (STAYING, FIRST, SECOND):
        ns.call(delivering.receive, str(hook), hook)
    put(config, reloading(FIRST, 50))
    with Running(ns, quick_ephmon(config)) as daemon:
        connect(ns, 750)
        documents(ns, FIRST, 1)
        connect(ns, 750, OTHER_PORT)
        rounds, deadline = 0, time.monotonic() + WAIT_SECONDS
        while rounds < 100 or daemon.metrics()['ephmon_alerts_active{severity="warning"}'] < 2:
            assert time.monotonic() < deadline, daemon.lines[-5:]
            rounds += 1
            reload(daemon, config, reloading(FIRST, 50 + rounds % 2))
        told = documents(ns, FIRST, 2)
        in_between = ns.call(delivering.posts, str(STAYING))

        # Another receiver hears of what fires and of all that comes; the one that is gone, of nothing more.
        reload(daemon, config, reloading(SECOND, 50))
        (introduced,) = documents(ns, SECOND, 1)
        refusal = refusal_of(daemon, config, "notify: {webhook: {url: nonsense}}\n")
        daemon.wait_for(config_last_reload_successful=0)
        ns.call(sockets.abort, "clients")
        eventually(
            lambda: ns.call(delivering.posts, str(SECOND)), lambda told: told[-1].document["status"] == "resolved"
        )
        ended = news(in_short(post.document) for post in ns.call(delivering.posts, str(SECOND)))[1:]
        told_in_all = len(ns.call(delivering.posts, str(FIRST)))
        daemon.stop()

    of_port, of_both = [f"warning {PORT}"], [f"warning {PORT}", f"warning {OTHER_PORT}"]
    assert [in_short(document) for document in told] == [in_state("firing", of_port), in_state("firing", of_both)]
    assert told_in_all == 2
    assert in_short(introduced) == in_state("firing", of_both)
    assert sorted(itertools.chain(*ended)) == in_state("resolved", of_both)
    assert [len(fires(daemon, port)) for port in (PORT, OTHER_PORT)] == [1, 1]
    assert "level=error" in refusal
    assert "notify.webhook.url: the URL does not begin with http:// or https://" in refusal
    # Each message moved the end away that it would have if no other came, so none said that it is over.
    ends = [post.document[0]["endsAt"] for post in in_between]
    assert len(ends) > 5
    assert ends == sorted(set(ends))


def fires(daemon: Running, port: int) -> list[str]:
    """Return the lines of the log that say that the alert toward this port fires."""
    return [line for line in daemon.lines if " fires as " in line and f" destination={HERE}:{port} " in line]


def in_state(status: str, alerts_in_short: Sequence[str]) -> list[Told]:
    return [(alert, status) for alert in alerts_in_short]


def test_a_webhook_whose_url_stands_in_a_file_is_reported_and_keeps_it_if_the_file_goes(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    ns.call(delivering.receive, str(FIRST), FIRST)
    secret = put(tmp_path / "secret", f"http://{HERE}:{FIRST}/hook?key=5ecret\n")
    notify = f'notify: {{labels: {{team: network}}, webhook: {{url_file: "{secret}"}}}}\n'
    put(config, f"{QUICK}thresholds: {{{AT_ONCE}}}\n{notify}")
    connect(ns, 950)
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        documents(ns, FIRST, 1)
        secret.unlink()
        refusal = refusal_of(daemon, config, config.read_text(encoding="utf-8"))
        daemon.wait_for(config_last_reload_successful=0)
        ns.call(sockets.abort, "clients")
        firing, resolved = documents(ns, FIRST, 2)
        post = ns.call(delivering.posts, str(FIRST))[0]
        daemon.stop()

    assert post.request_line == "POST /hook?key=5ecret HTTP/1.1"
    for status, document in (("firing", firing), ("resolved", resolved)):
        assert (document["version"], document["status"], document["receiver"]) == ("4", status, "ephmon")
        assert document["groupLabels"] == {"team": "network"}
        (alert,) = document["alerts"]
        assert (alert["status"], alert["labels"]) == (status, labels("critical"))
    assert "is at 95.0%: 50 of 1000 ports are left." in firing["alerts"][0]["annotations"]["description"]
    assert "notify.webhook.url_file: there is no such file; write the secret to a file and its path here" in refusal
    assert str(secret) not in refusal
    assert "5ecret" not in "".join(daemon.lines)


def test_a_file_of_the_url_that_is_missing_at_the_start_is_one_sentence(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    missing = tmp_path / "missing"
    put(config, f'notify: {{webhook: {{url_file: "{missing}"}}}}\n')

    result = run(ns.command(*ephmon("run", "--config", config)))

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "ephmon: notify.webhook.url_file: there is no such file; write the secret to a file and its path here\n"
    )
