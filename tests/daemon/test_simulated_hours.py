"""No alert on a day on which nothing is wrong, and the right one before the first failure where something is."""

from __future__ import annotations

import pytest

from tests.daemon import simulated_hours
from tests.daemon.simulated_hours import ADDRESSES, HERE, HERE_V6, PORT, RAMP_SECONDS, SERVER_V6, SERVERS
from tests.namespaces import Namespace
from tests.sockets import Recipe

HOURS = 24
SEED = 20_261_130
SECONDS = 300.0
INTERVAL_SECONDS = 5.0
BINDERS = {
    "bind, then connect": Recipe(bind=(HERE, 0), connect=(SERVERS[0], PORT)),
    "bind and share addresses, then connect": Recipe(bind=(HERE, 0), reuse_address=True, connect=(SERVERS[0], PORT)),
    "bind only": Recipe(bind=(HERE, 0)),
    "bind, then listen": Recipe(bind=(HERE, 0), listen=5),
    "bind to all addresses, then connect": Recipe(bind=("0.0.0.0", 0), connect=(SERVERS[0], PORT)),
    "IPv6: bind, then connect": Recipe(bind=(HERE_V6, 0), connect=(SERVER_V6, PORT)),
}


def test_a_day_on_which_nothing_is_wrong_has_no_alert_whether_the_kernel_is_asked_or_not() -> None:
    configurations = [f"poll: {{probe: {choice}}}" for choice in ("auto", "never")]
    with Namespace(addresses=ADDRESSES) as ns:
        alerts = ns.call_within(SECONDS, simulated_hours.alerts_of_a_day, configurations, hours=HOURS, seed=SEED)

    assert alerts == [{}, {}]


@pytest.mark.parametrize("recipe", BINDERS.values(), ids=BINDERS)
def test_ports_that_bind_takes_within_a_minute_are_critical_before_the_first_failure(recipe: Recipe) -> None:
    with Namespace(addresses=ADDRESSES) as ns:
        alerts, failed_at = ns.call(
            simulated_hours.alerts_of_a_ramp, "poll: {probe: auto}", recipe, interval=INTERVAL_SECONDS
        )

    assert failed_at >= RAMP_SECONDS
    assert alerts["EphmonPortsBlocked critical"] < failed_at
    if recipe.listen is None:  # services that listen do not show who chose their ports
        assert alerts["EphmonPoolNearExhaustion tcp_bind critical"] < failed_at
