"""A kernel that answers no inet_diag dump, because the handlers are modules that cannot be loaded, as in a sandbox.

Run in an emulated machine as long as its modules are where the kernel does not look for them: tests/emulated/init.
"""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.commands.answers import answer
from tests.emulated.reading import (
    BOTH_FAMILIES,
    CONNECTIONS,
    HERE,
    ONE_FAMILY,
    PORT,
    PORTS,
    handlers_loaded,
    pools,
    prepare,
    refusal,
)
from tests.kernel_truth.prediction import predict
from tests.namespaces import Namespace
from tests.processes import ephmon, run
from tests.sockets import FillResult

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_HANDLER = (
    "ephmon: The kernel has no inet_diag handler for the protocol. "
    "Load the kernel modules tcp_diag and udp_diag, allow AF_NETLINK, or set poll.backend: auto.\n"
)


@pytest.fixture(name="ns", scope="module")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        prepare(ns)
        yield ns


def test_dumps_are_refused_and_nothing_is_loaded(ns: Namespace) -> None:
    assert ns.call(refusal, BOTH_FAMILIES) == errno.EOPNOTSUPP
    assert ns.call(refusal, ONE_FAMILY) == errno.ENOENT
    assert handlers_loaded() == set()


@pytest.fixture(name="only_inet_diag")
def _only_inet_diag() -> Iterator[None]:
    (module,) = Path("/modules").glob("*/kernel/net/ipv4/inet_diag.ko*")
    subprocess.run(["insmod", module], check=True, timeout=60)
    yield
    subprocess.run(["rmmod", "inet_diag"], check=True, timeout=60)


@pytest.mark.usefixtures("only_inet_diag")
def test_without_the_module_of_the_protocol_a_dump_is_empty_but_for_an_errno(ns: Namespace) -> None:
    assert handlers_loaded() == {"inet_diag"}
    assert ns.call(refusal, BOTH_FAMILIES) == ns.call(refusal, ONE_FAMILY) == errno.ENOENT
    assert pools(ns)["backend"] == {"tcp": "procfs", "udp": "procfs"}


def test_the_sockets_are_read_from_proc_and_what_that_hides_is_named(ns: Namespace) -> None:
    answer = pools(ns)
    (namespace,) = answer["namespaces"]
    (pool,) = [one for one in answer["pools"] if one["destination_port"] == PORT]

    assert answer["backend"] == {"tcp": "procfs", "udp": "procfs"}
    assert (answer["complete"], answer["missing"]) == (True, [])
    assert namespace["blind_to"] == ["bound_device", "bound_unconnected", "v6only"]
    assert (pool["in_use_ports"], pool["remaining_ports"]) == (CONNECTIONS, PORTS - CONNECTIONS)
    assert not pool["exact"]


def test_the_table_is_printed(ns: Namespace) -> None:
    result = run(ns.command(*ephmon("pools")))

    assert (result.returncode, result.stderr) == (0, "")
    assert f"{HERE}:{PORT}" in result.stdout


def test_the_backend_inet_diag_fails_with_a_sentence(ns: Namespace, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("poll: {backend: inet_diag}\n", encoding="utf-8")

    assert ns.call(answer, "pools", "--config", str(config)) == (1, "", NO_HANDLER)


def test_what_is_read_from_proc_is_what_connect_finds(ns: Namespace) -> None:
    before = ns.call(predict, HERE, PORT, HERE, "auto")
    filled = ns.call(sockets.fill, HERE, PORT, tag="fill")
    after = ns.call(predict, HERE, PORT, HERE, "auto")

    assert filled == FillResult(PORTS - CONNECTIONS, errno.EADDRNOTAVAIL)
    assert (before.remaining, after.remaining, after.utilisation) == (PORTS - CONNECTIONS, 0, 1.0)
