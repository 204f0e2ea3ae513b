"""`ephmon pools` with advice: below the table of a destination, and in JSON, for pools that reached a threshold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from ephmon.commands import owners
from tests import sockets
from tests.commands.answers import Answer, answer
from tests.kernel_truth.experiment import leave_time_wait
from tests.namespaces import Namespace
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, OWN = "127.0.0.1", "10.8.0.1"


@pytest.fixture(name="ns", scope="module")
def _ns() -> Iterator[Namespace]:
    """A host with 1,000 ports, of which one pool uses 750, another 100, and a third 800 by TIME_WAIT."""
    with Namespace(addresses=[f"{OWN}/32"]) as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        ns.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
        for address, port, number in ((HERE, 80, 750), (HERE, 81, 100)):
            ns.call(sockets.listen, address, port, tag="server")
            assert ns.call(sockets.fill, address, port, tag="clients", limit=number) == FillResult(number, 0)
        ns.call(sockets.listen, OWN, 82, tag="server")
        ns.call(leave_time_wait, 800, Recipe(connect=(OWN, 82)))
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("poll: {deadline: 30s}\n", encoding="utf-8")
    return str(path)


def test_below_the_table_of_a_destination_stands_what_to_do_about_its_full_pools(ns: Namespace, config: str) -> None:
    got = ns.call(answer, "pools", "--config", config, "--destination", HERE)
    table, empty, advice = got.out.partition("\n\ntcp_connect from ")

    assert (got.status, got.err, empty != "") == (0, "", True)
    assert "127.0.0.1:81" in table
    assert advice.splitlines()[:2] == [
        "127.0.0.1 to 127.0.0.1:80 is at 75.0%:",
        "Likely cause: Connections to 127.0.0.1:80 stay open: 750 of 750 sockets are ESTABLISHED.",
    ]
    assert [line[:5] for line in advice.splitlines()[2:]] == ["  1. ", "  2. ", "  3. ", "Do no"]


def test_time_wait_is_told_from_open_connections(ns: Namespace, config: str) -> None:
    got = ns.call(answer, "pools", "--config", config, "--destination", f"{OWN}:82")

    assert f"\nLikely cause: Connections to {OWN}:82 do not last: 800 of 1000 usable ports wait in TIME_WAIT" in got.out
    assert "  1. Send many requests over one connection. " in got.out


@pytest.mark.parametrize("words", [["--destination", f"{HERE}:81"], []], ids=["an empty pool", "all pools"])
def test_other_tables_are_without_advice(ns: Namespace, config: str, words: list[str]) -> None:
    got = ns.call(answer, "pools", "--config", config, *words)

    assert "127.0.0.1:81" in got.out
    assert "Likely cause" not in got.out


def test_json_has_it_for_each_pool_that_reached_a_threshold(ns: Namespace, config: str) -> None:
    got = ns.call(answer, "pools", "--config", config, "--json")
    pools = {pool["destination_port"]: pool for pool in json.loads(got.out)["pools"] if pool["kind"] == "tcp_connect"}

    assert {port for port, pool in pools.items() if "advice" in pool} == {80, 82}
    advice = pools[80]["advice"]
    assert advice.keys() == {"cause", "steps", "avoid"}
    assert advice["cause"].startswith("Connections to 127.0.0.1:80 stay open: ")
    assert (len(advice["steps"]), advice["avoid"][:7]) == (3, "Do not ")


def test_the_thresholds_of_the_configuration_decide(ns: Namespace, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "thresholds: {warning: {utilisation: 0.85}, overrides: [{destination_port: 81, warning: {utilisation: .1}}]}\n",
        encoding="utf-8",
    )
    got = ns.call(answer, "pools", "--config", str(config), "--json")

    pools = json.loads(got.out)["pools"]
    assert {pool["destination_port"] for pool in pools if "advice" in pool} == {81}


def answer_about_one_pool(*words: str) -> Answer:
    """Run a command that asks about the owners of one pool at most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owners, "MAX_POOLS", 1)
        return answer(*words)


def test_the_fullest_pools_are_asked_about_and_it_is_said_how_many_are_not(ns: Namespace, config: str) -> None:
    table = ns.call(answer_about_one_pool, "pools", "--config", config, "--owners", "--top", "3")
    one_less = ns.call(answer_about_one_pool, "pools", "--config", config, "--owners", "--top", "2")
    document = json.loads(ns.call(answer_about_one_pool, "pools", "--config", config, "--owners", "--json").out)

    told = "The owners of {} were not read; choose pools with --top or --destination.\n"
    assert (table.status, one_less.status) == (0, 0)
    assert told.format("2 more pools") in table.out
    assert told.format("1 more pool") in one_less.out
    assert [pool["owners"] is None for pool in document["pools"]] == [False, *[True] * (len(document["pools"]) - 1)]


def test_who_is_not_asked_about_owners_tells_none(ns: Namespace, config: str) -> None:
    (*_, pool) = json.loads(ns.call(answer, "pools", "--config", config, "--json").out)["pools"]

    assert pool["owners"] is None
    assert "processes" not in pool
