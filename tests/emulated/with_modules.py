"""A kernel that loads the handlers of inet_diag when it is first asked, as distributions deliver it.

Run in an emulated machine after `without_modules.py`, when none is loaded: tests/emulated/init.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.kernel.proc.sysctl import read_release
from tests.emulated.reading import HANDLERS, handlers_loaded, pools, pools_of_ordinary_user, prepare
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_SHOWN = {(6, 1): ["bound_unconnected"], (6, 12): []}
"""What inet_diag does not show, by release of the kernel."""


@pytest.fixture(name="put_in_place", scope="module")
def _put_in_place() -> None:
    """Put the modules where the kernel looks for them.

    Only those in question are indexed: to look at all hundreds takes an emulated processor ten seconds more.
    """
    installed = Path("/usr/lib/modules")
    Path("/modules").rename(installed)
    (release,) = (path.name for path in installed.iterdir())
    diag = installed.glob("*/kernel/net/ipv4/*_diag.ko*")
    subprocess.run(["depmod", release, *diag], check=True, timeout=60)


@pytest.fixture(name="ns", scope="module")
def _ns(put_in_place: None) -> Iterator[Namespace]:  # noqa: ARG001 - a fixture that is there for what it does
    with Namespace() as ns:
        prepare(ns)
        yield ns


def test_the_first_reading_loads_the_handlers_without_any_privilege(ns: Namespace) -> None:
    before = handlers_loaded()
    answer = pools_of_ordinary_user(ns)

    assert (before, handlers_loaded()) == (set(), HANDLERS)
    assert answer["backend"] == {"tcp": "inet_diag", "udp": "inet_diag"}


def test_what_the_kernel_does_not_show_is_named(ns: Namespace) -> None:
    (namespace,) = pools(ns)["namespaces"]

    assert namespace["blind_to"] == NOT_SHOWN[read_release(Path("/proc"))]
