"""What errors say that do not depend on what was attempted."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.daemon.incident_folder import Folder
from ephmon.errors import EphmonError
from ephmon.http.tls import TlsFiles, build_tls_context
from ephmon.kernel.netlink.route import source_toward
from ephmon.kernel.proc.sysctl import read_sysctls
from tests.machine import no_descriptor_left

if TYPE_CHECKING:
    from collections.abc import Callable


def write_an_incident() -> None:
    Folder(directory="/run", max_files=1, max_bytes=1).write(b"", reason="critical", at=0.0)


ATTEMPTS: dict[str, Callable[[], object]] = {
    "to ask for a route": lambda: source_toward(ip_address("127.0.0.1"), 80),
    "to read a sysctl": lambda: read_sysctls(Path("/proc")),
    "to write an incident": write_an_incident,
    "to read a certificate": lambda: build_tls_context(TlsFiles(certificate=Path(__file__), key=Path(__file__))),
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_without_a_descriptor_the_advice_is_about_descriptors_and_nothing_else(attempt: Callable[[], object]) -> None:
    with pytest.raises(EphmonError) as raised, no_descriptor_left():
        attempt()

    before, _, advice = str(raised.value).partition("Too many open files")
    assert before
    assert advice.strip(")").lstrip(":; ") == (
        "raise the limit of open files: LimitNOFILE= in the systemd unit, or ulimit -n."
    )
