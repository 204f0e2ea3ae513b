"""EphmonConnectSlow: when the searches of connect() take a share of a core that is worth a warning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.model.advice.for_alert import advice_on
from ephmon.model.alerting.state_machine import AlertKey, AlertName, Phase
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.forecast.search_share import search_share
from ephmon.model.rules import Rules
from ephmon.model.step import conclude
from ephmon.outputs.text.alerts import sentence
from tests.builders import make_forecast, make_pool
from tests.model.facts import blank_state, connect_key, connected, make_sysctls, snapshot_of

if TYPE_CHECKING:
    from ephmon.model.state import State

SLOW = AlertKey(AlertName.CONNECT_SLOW, "own", connect_key("10.0.0.9", 443, "10.0.0.1"))
RANGE = make_sysctls(32_768, 60_999)
SECONDS = 50e-9
"""Of one port. A search of 14,117 ports takes 0.7 ms then, so that 71 in a second take a twentieth of a core."""


def polled(state: State, now: float, opened: int) -> State:
    """Poll a host that keeps half of the range and a little more, and has opened so many connections since."""
    ports = [*range(32_768, 61_000, 2), *range(32_769, 32_769 + 2 * opened, 2)]
    return conclude(snapshot_of(connected("10.0.0.1", ports, "10.0.0.9", 443), sysctls=RANGE), state, now)


def phases(rate: int, seconds: float | None = SECONDS, rules: Rules | None = None) -> list[Phase | None]:
    """Return the phases of the alert over polls each 5 s while so many connections are opened in a second."""
    state, found = replace(blank_state(rules or Rules()), search_seconds=seconds), []
    for poll in range(8):
        state = polled(state, 5.0 * poll, 5 * rate * poll)
        alert = state.report.alerts.states.get(SLOW)
        found.append(None if alert is None else alert.phase)
    return found


def test_searches_that_take_a_twentieth_of_a_core_for_ten_seconds_are_a_warning() -> None:
    found = phases(80)

    assert found[-1] is Phase.FIRING
    assert found[: found.index(Phase.FIRING)].count(Phase.PENDING) >= 2
    assert Phase.FIRING not in phases(60)


def test_the_share_is_that_of_the_configuration() -> None:
    assert phases(60, rules=Rules(connect_search_share=0.025))[-1] is Phase.FIRING


def test_a_search_whose_time_was_not_measured_raises_no_alert() -> None:
    assert set(phases(160, seconds=None)) == {None}


def test_short_searches_raise_no_alert_however_many_there_are() -> None:
    state = replace(blank_state(), search_seconds=1.0)
    for poll in range(8):
        rows = connected("10.0.0.1", range(32_768, 32_768 + 200 * poll, 2), "10.0.0.9", 443)
        state = conclude(snapshot_of(rows, sysctls=RANGE), state, 5.0 * poll)

    (listed,) = state.report.listed
    assert listed.search_share is not None
    assert listed.search_share > 1.0
    assert SLOW not in state.report.alerts.states


def test_the_alert_says_what_it_costs_and_what_helps_and_ends_with_its_cause() -> None:
    state = replace(blank_state(), search_seconds=SECONDS)
    for poll in range(8):
        state = polled(state, 5.0 * poll, 800 * poll)
    alert = state.report.alerts.states[SLOW]
    advice = advice_on(alert, state.report)

    assert (alert.phase, alert.severity) == (Phase.FIRING, Severity.WARNING)
    assert sentence(alert).startswith(
        "Each connect() of tcp_connect from 10.0.0.1 to 10.0.0.9:443 looks at about 14118 ports to find one. That "
        "takes at least 11.3% of a processor core."
    )
    assert advice is not None
    assert advice.steps[0].startswith("Widen the port range")
    rows = connected("10.0.0.1", range(32_768, 40_000, 2), "10.0.0.9", 443)
    after = conclude(snapshot_of(rows, sysctls=RANGE), state, 40.0)
    assert after.report.alerts.states[SLOW].phase is Phase.RESOLVED


def test_a_share_is_known_only_if_rate_search_and_time_are() -> None:
    pool, forecast = make_pool(search_ports=10_000.0), make_forecast(opens_per_second=100.0)

    assert search_share(pool, forecast, 1e-7) == pytest.approx(0.1)
    assert search_share(make_pool(), forecast, 1e-7) is None
    assert search_share(pool, None, 1e-7) is None
    assert search_share(pool, forecast, None) is None
