"""Whom a running daemon answers: over real sockets, with curl, a real Prometheus and certificates of openssl."""

from __future__ import annotations

import base64
import signal
from typing import TYPE_CHECKING

import pytest

from tests.certificates import make_certificate
from tests.namespaces import Namespace
from tests.processes import Running, ephmon, eventually, fetch, parse_metrics, put
from tests.prometheus import ask, prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ephmon.http.tls import TlsFiles
    from tests.processes import Metrics

QUICK = "poll: {interval: 100ms, cpu_budget: 1}\n"
TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NOT_AFTER = "ephmon_tls_certificate_not_after_timestamp_seconds"
OPEN = "Everybody who reaches this address can read the destinations of this host."
SCRAPE = """\
scrape_configs:
  - job_name: ephmon
    scrape_interval: 1s
    authorization: {{credentials_file: {0}}}
    static_configs: [{{targets: ["127.0.0.1:19100"]}}]
  - job_name: basic
    scrape_interval: 1s
    basic_auth: {{username: anybody, password_file: {0}}}
    static_configs: [{{targets: ["127.0.0.1:19100"]}}]
  - job_name: stranger
    scrape_interval: 1s
    static_configs: [{{targets: ["127.0.0.1:19100"]}}]
"""


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


def status(ns: Namespace, path: str = "/metrics", **headers: str) -> int:
    return ns.call(fetch, path, headers=headers).status


def metrics_of(ns: Namespace) -> Metrics:
    return parse_metrics(ns.call(fetch, "/metrics", headers=BEARER).body)


def wait_for_refused(ns: Namespace, reason: str, number: int) -> None:
    """Wait until a poll has published that so many requests were refused."""
    series = f'ephmon_http_requests_refused_total{{reason="{reason}"}}'
    eventually(lambda: metrics_of(ns).get(series, 0.0), lambda refused: refused >= number)


def wait_until_it_polls(daemon: Running) -> None:
    daemon.wait_for_line("ports are usable")


def test_a_prometheus_with_the_token_scrapes_and_one_without_is_refused(ns: Namespace, tmp_path: Path) -> None:
    token = put(tmp_path / "token", f"{TOKEN}\n")
    config = put(tmp_path / "config.yaml", QUICK + f"http: {{token_file: {token}}}\n")
    with (
        Running(ns, ephmon("run", "--config", config)) as daemon,
        prometheus(ns, tmp_path / "prometheus", SCRAPE.format(token)),
    ):
        wait_until_it_polls(daemon)
        up = eventually(
            lambda: {one["metric"]["job"]: one["value"][1] for one in ask(ns, "query", query="up")["result"]},
            lambda up: len(up) == 3 and up["ephmon"] == up["basic"] == "1",
        )
        targets = ask(ns, "targets")["activeTargets"]
        wait_for_refused(ns, "no_token", 1)

    assert up["stranger"] == "0"
    [error] = [target["lastError"] for target in targets if target["labels"]["job"] == "stranger"]
    assert error == "server returned HTTP status 401 Unauthorized"


def test_a_token_is_taken_over_by_a_reload_and_a_bad_one_keeps_the_old(ns: Namespace, tmp_path: Path) -> None:
    token = put(tmp_path / "token", TOKEN)
    config = put(tmp_path / "config.yaml", QUICK)
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        wait_until_it_polls(daemon)
        before = status(ns)
        put(config, QUICK + f"http: {{token_file: {token}}}\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")
        after = status(ns), status(ns, Authorization=f"Bearer {TOKEN}")
        put(token, "short")
        daemon.signal(signal.SIGHUP)
        line = daemon.wait_for_line("The configuration is kept as it was")
        kept = status(ns, Authorization=f"Bearer {TOKEN}"), status(ns, Authorization="Bearer short")
        put(token, TOKEN[::-1])
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")
        password = base64.b64encode(f"me:{TOKEN[::-1]}".encode()).decode()
        renewed = status(ns, Authorization=f"Bearer {TOKEN}"), status(ns, Authorization=f"Basic {password}")

    assert (before, after, kept, renewed) == (200, (401, 200), (200, 401), (401, 200))
    assert f"{token}: http.token_file: the token has fewer than 16 characters" in line
    assert not [line for line in daemon.lines if TOKEN in line or TOKEN[::-1] in line]


def test_a_token_that_cannot_be_read_is_a_mistake_of_the_configuration(ns: Namespace, tmp_path: Path) -> None:
    config = put(tmp_path / "config.yaml", "http: {token_file: /nonexistent/token}\n")
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for_line("http.token_file: there is no such file")
        assert daemon.wait() == 2


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/pools", "/api/v1/exhaustions", "/-/healthy", "/-/ready"])
def test_a_page_that_was_rebound_to_loopback_reads_nothing(ns: Namespace, tmp_path: Path, path: str) -> None:
    config = put(tmp_path / "config.yaml", QUICK + "http: {hosts: [mon.example.net]}\n")
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        wait_until_it_polls(daemon)
        rebound = ns.call(fetch, path, headers={"Host": "evil.example:19100"})
        own = status(ns, path, Host="mon.example.net:19100")
        put(config, QUICK)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")
        no_longer = status(ns, path, Host="mon.example.net:19100")
        wait_for_refused(ns, "host", 2)

    assert (rebound.status, own, no_longer) == (421, 200, 421)
    assert "http.hosts" in rebound.body


def test_a_reload_that_opens_what_was_closed_warns_of_it(ns: Namespace, tmp_path: Path) -> None:
    token = put(tmp_path / "token", TOKEN)
    listen = QUICK + "listen: 0.0.0.0:19100\n"
    config = put(tmp_path / "config.yaml", listen + f"http: {{token_file: {token}}}\n")
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for_line("Clients send the token unencrypted")
        wait_until_it_polls(daemon)
        put(config, listen)
        daemon.signal(signal.SIGHUP)

        assert "http.token_file" in daemon.wait_for_line(OPEN)


def expiry(ns: Namespace, files: TlsFiles) -> float:
    return parse_metrics(ns.call(fetch, "/metrics", authority=str(files.certificate)).body)[NOT_AFTER]


def test_a_certificate_that_is_renewed_is_shown_without_a_reload_and_a_broken_one_keeps_the_old(
    ns: Namespace, tmp_path: Path
) -> None:
    files = make_certificate(tmp_path, "server")
    old = put(tmp_path / "old.pem", files.certificate.read_text(encoding="utf-8"))
    config = put(tmp_path / "config.yaml", QUICK + f"tls: {{certificate: {files.certificate}, key: {files.key}}}\n")
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        wait_until_it_polls(daemon)
        first = expiry(ns, files)
        files.certificate.write_text("broken\n", encoding="utf-8")
        broken = ns.call(fetch, "/-/healthy", authority=str(old)).status
        line = daemon.wait_for_line("The TLS files changed, and the old ones stay in use")
        make_certificate(tmp_path, "server", days=3)
        later = eventually(lambda: expiry(ns, files), lambda moment: moment > first)
        daemon.wait_for_line("The TLS files changed, and the new ones are in use.")

    assert broken == 200
    assert "are not a certificate and its key in PEM form." in line
    assert later == pytest.approx(first + 2 * 86400, abs=60)
