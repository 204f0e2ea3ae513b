"""The objects that are delivered are what script/bpf makes of their source."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from ephmon.kernel.bpf.load import COPYING, DIRECT

ROOT = Path(__file__).parents[3]
IS_DEBIAN_12 = platform.freedesktop_os_release().get("VERSION_CODENAME") == "bookworm"
OBJECTS = (COPYING, DIRECT)


@pytest.mark.skipif(not IS_DEBIAN_12, reason="another compiler than Debian 12's gives other bytes")
def test_the_objects_are_made_of_their_source_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([ROOT / "script/bpf", tmp_path], check=True, timeout=60)

    for delivered in OBJECTS:
        assert (tmp_path / delivered.name).read_bytes() == delivered.read_bytes()


def test_the_objects_say_under_which_licence_the_kernel_may_take_them() -> None:
    assert [delivered.read_bytes().count(b"Dual BSD/GPL\0") for delivered in OBJECTS] == [1, 1]
    source = COPYING.with_name("bind_table.bpf.c").read_text(encoding="utf-8")
    assert source.startswith("/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */\n")
