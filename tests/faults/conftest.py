"""What every fault needs: a namespace with a server in it, and a folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.faults.stage import HERE, LOW, PORT, PORTS, Stage
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="stage")
def _stage() -> Iterator[Stage]:
    # Every user can look into this folder, unlike into pytest's own.
    with Namespace() as ns, TemporaryDirectory(prefix="ephmon-fault-") as folder, Stage(ns, Path(folder)) as stage:
        Path(folder).chmod(0o755)
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {LOW + PORTS - 1}")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        yield stage
