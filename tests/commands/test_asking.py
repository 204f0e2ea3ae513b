"""`pools` and `check` ask the kernel about ports in doubt by themselves; --no-probe and the configuration forbid it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import sockets
from tests.commands.answers import Answer, answer
from tests.namespaces import Namespace
from tests.ordinary_user import as_ordinary_user
from tests.processes import put
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, BUSY, OTHER = "127.0.0.1", 80, 81
BOUND = 190
NEITHER_WAY = (
    "The probe needs bit 0 of net.ipv4.tcp_fastopen, which is set by default, or CAP_NET_ADMIN. "
    "Set that bit, or run ephmon as root."
)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """A host where bind(address, 0) has taken 190 of 200 ports from everybody, and no socket shows it."""
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40199")
        for port in (BUSY, OTHER):
            ns.call(sockets.listen, HERE, port, tag="server")
        recipe = Recipe(bind=(HERE, 0), connect=(HERE, BUSY))
        assert ns.call(sockets.open_sockets, recipe, tag="bound", limit=BOUND) == FillResult(BOUND, 0)
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    return put(tmp_path / "config.yaml", "poll: {deadline: 30s}\n")


def other_pool(ns: Namespace, config: Path, *option: str) -> tuple[int, dict[str, Any]]:
    """Return how many ports are in doubt, and a pool that has no port of its own beside two sockets."""
    document = json.loads(ns.call(answer, "pools", "--json", "--config", str(config), *option).out)
    (found,) = (pool for pool in document["pools"] if pool["destination_port"] == OTHER)
    return document["namespaces"][0]["ambiguous_ports"], found


def check(ns: Namespace, config: Path, *option: str) -> Answer:
    return ns.call(answer, "check", f"{HERE}:{OTHER}", "--config", str(config), *option)


def test_pools_has_the_number_of_the_kernel(ns: Namespace, config: Path) -> None:
    assert ns.call(sockets.fill, HERE, OTHER, tag="clients", limit=2) == FillResult(2, 0)
    in_doubt, pool = other_pool(ns, config)
    in_doubt_unasked, unasked = other_pool(ns, config, "--no-probe")

    assert (in_doubt, pool["exact"], pool["remaining_ports"]) == (0, True, 8)
    assert (in_doubt_unasked, unasked["exact"]) == (192, False)
    assert ns.call(sockets.fill, HERE, OTHER, tag="clients").count == 8


def test_check_warns_before_the_first_failure(ns: Namespace, config: Path) -> None:
    got = check(ns, config)

    assert got.status == 2
    assert ", 10 of 200 ports are left" in got.out
    assert check(ns, config, "--no-probe").status < 2
    put(config, "poll: {deadline: 30s, probe: never}\n")
    assert check(ns, config).status < 2
    assert ns.call(sockets.fill, HERE, OTHER, tag="clients").count == 10


def test_where_it_is_not_possible_they_say_what_would_help(ns: Namespace) -> None:
    """They answer all the same, with estimates."""
    ns.call(answer, "check")  # whoever has given up its rights may be unable to import
    ns.call(answer, "pools")
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_fastopen", 0)
    pools = ns.call(as_ordinary_user, answer, "pools")
    checked = ns.call(as_ordinary_user, answer, "check")

    assert (pools.status, pools.err) == (0, f"ephmon: {NEITHER_WAY}\n")
    assert f"\n{NEITHER_WAY}\n" in checked.out
    assert checked.err == ""


def test_check_also_asks_where_no_answer_can_make_a_difference(ns: Namespace, config: Path) -> None:
    """It says what the daemon says after its first poll."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")

    assert ", 810 of 1000 ports are left" in check(ns, config).out
    assert "~" in check(ns, config, "--no-probe").out
