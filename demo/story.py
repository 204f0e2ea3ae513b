"""The story: a proxy opens a connection for each client, runs out of ports, is told of by all means, and is cured."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.service import ALERTMANAGER, EPHMON, HAPROXY, PROMETHEUS, Pager, get, get_json, value_of
from demo.stage import HERE, PORTS, SHOP, SHOP_PORT, DemoError, Stage, python
from demo.watch import Watch, held_alerts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from demo.timeline import Timeline

_HERE = Path(__file__).parent
RULES = _HERE.parent / "deploy" / "prometheus"
FASTER: Mapping[str, str] = {
    "interval: 15s": "interval: 1s",
    "keep_firing_for: 2m": "keep_firing_for: 5s",
    "[5m]": "[30s]",
}
"""The times in the rules that would not fit into two minutes, and what stands there in the demo."""
_CURE: Mapping[str, str] = {"mode tcp": "mode http", "listen shop\n": "listen shop\n  http-reuse aggressive\n"}
_ALERT = "EphmonPoolNearExhaustion"
_LABELS = ("severity", "kind", "source", "destination", "destination_port")
_PROXY_PORT = 8000
_REGULARS = 5
_FAILURES = 100
"""How many calls fail before something is done."""
_START_SECONDS, _FILL_SECONDS, _ALERT_SECONDS = 30.0, 60.0, 30.0
_TIME_WAIT_SECONDS, _RESOLVE_SECONDS = 75.0, 90.0
_QUIET_SECONDS = 4.0


def tell(stage: Stage, timeline: Timeline) -> None:
    """Tell all of it.

    Raises:
        DemoError: Something does not happen as it should.
    """
    timeline.say("demo", f"HAProxy at {HERE} will have {PORTS} ports toward the shop, {SHOP}:{SHOP_PORT}.")
    stage.build()
    with Pager() as pager, ExitStack() as regulars:
        watch = Watch(stage, timeline, pager)
        _open(stage, timeline)
        _load(stage, timeline, regulars)
        _run_out(watch, timeline)
        steps = _ask_for_advice(stage, timeline)
        reuse_before = _cure(stage, timeline, watch, steps)
        _recover(stage, timeline, watch, reuse_before)
        _sum_up(stage, timeline)


def shortened_times(rules: str) -> str:
    """Return rules of Prometheus with the times of the demo."""
    for usual, short in FASTER.items():
        rules = rules.replace(usual, short)
    return rules


def cured(configuration: str) -> str:
    """Return the configuration of the proxy with the first step of the advice applied."""
    for ill, well in _CURE.items():
        configuration = configuration.replace(ill, well)
    return configuration


def _open(stage: Stage, timeline: Timeline) -> None:
    """Start everything but the load, and wait until all of it works together."""
    _start(stage)
    stage.wait(lambda: get(HAPROXY, "/metrics"), "HAProxy does not answer", _START_SECONDS)
    stage.wait(lambda: get(ALERTMANAGER, "/-/ready"), "Alertmanager is not ready", _START_SECONDS)
    stage.wait(_is_scraped, "Prometheus has not scraped ephmon", _START_SECONDS)
    stage.wait(lambda: get(_PROXY_PORT, "/"), "the shop does not answer through HAProxy", _START_SECONDS)
    times = ", ".join(f"`{usual}` is `{short}`" for usual, short in FASTER.items())
    timeline.say("demo", f"HAProxy, ephmon, Prometheus and Alertmanager are up; in the rules, {times}.")
    calls = get_json(EPHMON, "/api/v1/exhaustions")
    if not calls["available"]:
        missing = "what the kernel says of failed connect() calls, for which it takes root and tracefs"
        timeline.say("demo", f"MISSING is {missing}; HAProxy's log has to do. ephmon says: {calls['error']}")


def _start(stage: Stage) -> None:
    for name in ("proxy.cfg", "ephmon.yaml", "prometheus.yml", "alertmanager.yml", "load.lua"):
        stage.write(name, (_HERE / name).read_text(encoding="utf-8"))
    for file in sorted(RULES.glob("ephmon-*.yml")):
        stage.write(file.name, shortened_times(file.read_text(encoding="utf-8")))
    stage.start_on_another_host("shop", *python("-m", "demo.shop", str(SHOP_PORT)))
    stage.start("proxy", "haproxy", "-W", "-db", "-f", "proxy.cfg")
    stage.start("ephmon", *python("-m", "ephmon", "run", "--config", "ephmon.yaml"))
    files = ("--config.file=alertmanager.yml", "--storage.path=alerts")
    address = f"--web.listen-address=127.0.0.1:{ALERTMANAGER}"
    stage.start("alertmanager", "prometheus-alertmanager", *files, address, "--cluster.listen-address=")
    files = ("--config.file=prometheus.yml", "--storage.tsdb.path=samples")
    stage.start("prometheus", "prometheus", *files, f"--web.listen-address=127.0.0.1:{PROMETHEUS}")


def _is_scraped() -> bool:
    found = get_json(PROMETHEUS, "/api/v1/query?query=up%3D%3D1")
    return bool(found and found["data"]["result"])


def _load(stage: Stage, timeline: Timeline, regulars: ExitStack) -> None:
    """Let some clients come who stay, and then those who come and go."""
    for _ in range(_REGULARS):
        regular = regulars.enter_context(socket.create_connection(("127.0.0.1", _PROXY_PORT), timeout=5))
        regular.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
        if not regular.recv(1000).startswith(b"HTTP/1.1 200 "):
            raise DemoError("The shop does not answer through the proxy; `--keep` keeps the logs.")
    stage.start("wrk", "wrk", "-t1", "-c8", "-d10m", "-s", "load.lua", f"http://127.0.0.1:{_PROXY_PORT}/")
    timeline.say(
        "wrk",
        "40 clients a second: each asks, hangs up, and leaves a connection of HAProxy's in TIME_WAIT, which keeps its "
        "port for a minute.",
    )


def _run_out(watch: Watch, timeline: Timeline) -> None:
    """Wait until no port is left, calls fail, and Alertmanager holds the alert as critical."""

    def has_failed() -> bool:
        return (watch.logged if watch.failures is None else watch.failures) >= _FAILURES

    watch.until(has_failed, f"fewer than {_FAILURES} connections have failed", _FILL_SECONDS)
    watch.show()
    watch.until(_critical_alert, "Alertmanager does not hold the alert", _ALERT_SECONDS)
    alert = _critical_alert()
    labels = ", ".join(f'{name}="{alert["labels"][name]}"' for name in _LABELS)
    timeline.say("Alertmanager", f"holds {_ALERT}{{{labels}}}, runbook {alert['annotations']['runbook_url']}")


def _critical_alert() -> dict[str, Any]:
    """Return the alert that Alertmanager holds of the pool toward the shop as critical, {} if it holds none."""
    wanted = {"alertname": _ALERT, "severity": "critical", "destination": SHOP, "destination_port": str(SHOP_PORT)}
    found = (alert for alert in held_alerts() or [] if wanted.items() <= alert["labels"].items())
    return next(found, {})


def _ask_for_advice(stage: Stage, timeline: Timeline) -> list[str]:
    """Say what is the cause and what to do; return the steps."""
    command = ("pools", "--owners", "--destination", f"{SHOP}:{SHOP_PORT}")
    (pool,) = json.loads(stage.output_of(*python("-m", "ephmon", *command, "--json")))["pools"]
    advice = pool["advice"]
    timeline.say("advice", f"$ ephmon {' '.join(command)}")
    timeline.say("advice", f"Likely cause: {advice['cause']}")
    for number, step in enumerate(advice["steps"], start=1):
        timeline.say("advice", f"{number}. {step}")
    return list(advice["steps"])


def _first_aid(steps: list[str]) -> tuple[int, re.Match[str]]:
    """Return the number of the step that gives the TIME_WAITs back, and its sysctl with the value."""
    for number, step in enumerate(steps, start=1):
        sysctl = re.search(r"`sysctl -w (net\.ipv4\.tcp_tw_reuse)=(\d)`", step)
        if sysctl and "http-reuse" in steps[0]:
            return number, sysctl
    raise DemoError("The advice is another than the demo can follow.")


def _cure(stage: Stage, timeline: Timeline, watch: Watch, steps: list[str]) -> str:
    """Do what the advice says; return the sysctl as it was."""
    number, first_aid = _first_aid(steps)
    before = stage.read_sysctl(first_aid[1])
    stage.write("proxy.cfg", cured(stage.read("proxy.cfg")))
    stage.output_of("haproxy", "-c", "-f", "proxy.cfg")
    stage.process("proxy").send_signal(signal.SIGUSR2)
    timeline.say("fix", "Step 1, the cure: `mode http` and `http-reuse aggressive`, and HAProxy is reloaded.")
    stage.write_sysctl(first_aid[1], first_aid[2])
    timeline.say("fix", f"Step {number}, first aid while the TIME_WAITs last: {first_aid[0]}.")
    still = "connections still fail"
    watch.until(lambda: time.monotonic() - watch.failed_at > _QUIET_SECONDS, still, _ALERT_SECONDS)
    timeline.say("HAProxy", f"No connection fails any more. {watch.logged} did, says its log.")
    if watch.failures is not None:
        timeline.say("ephmon", f"{watch.failures} connect() calls failed, says the kernel.")
    return before


def _recover(stage: Stage, timeline: Timeline, watch: Watch, reuse_before: str) -> None:
    """Wait for the end of the TIME_WAITs, take the first aid away, and wait for the end of the alerts."""
    watch.until(lambda: watch.figures.time_wait < PORTS // 50, "there still are TIME_WAITs", _TIME_WAIT_SECONDS)
    watch.show()
    stage.write_sysctl("net.ipv4.tcp_tw_reuse", reuse_before)
    timeline.say("fix", f"The TIME_WAITs are gone, and so may the first aid: `net.ipv4.tcp_tw_reuse={reuse_before}`.")
    # Alertmanager may have none any more a moment before it has told the pager so.
    otherwise = "Alertmanager still holds alerts, or has not told the pager of their ends"
    watch.until(lambda: held_alerts() == [] and not watch.criticals, otherwise, _RESOLVE_SECONDS)
    watch.show()
    timeline.say("Alertmanager", "holds no alert any more.")


def _sum_up(stage: Stage, timeline: Timeline) -> None:
    metrics = get(HAPROXY, "/metrics") or ""
    requests = value_of(metrics, 'haproxy_backend_http_responses_total{proxy="shop",code="2xx"}')
    connections = value_of(metrics, 'haproxy_backend_connection_attempts_total{proxy="shop"}')
    timeline.say("HAProxy", f"{requests:.0f} requests since the reload have taken {connections:.0f} connections.")
    stage.end("wrk", signal.SIGINT)
    said = stage.read("wrk.out")
    answered, lost = re.search(r"(\d+) requests in", said), re.search(r"Socket errors: .* read (\d+)", said)
    if answered is None or lost is None:
        raise DemoError(f"wrk does not say what it should: {said}")
    timeline.say("wrk", f"{answered[1]} requests were answered, {lost[1]} were not.")
