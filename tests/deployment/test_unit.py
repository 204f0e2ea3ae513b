"""The unit and its drop-ins as systemd reads them, without installing anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = SYSTEMD / "ephmon.service"
DROP_INS = sorted(SYSTEMD.glob("*.conf"))
MOST_EXPOSED = 1.6
"""What the unit by itself may have of 10."""


def analyze(command: str, unit: Path, *options: str) -> tuple[int, str]:
    """Return status and output of `systemd-analyze`; it reads the drop-ins that lie beside the unit."""
    result = subprocess.run(
        ["systemd-analyze", command, *options, unit],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    return result.returncode, result.stdout


def exposure(folder: Path, *drop_ins: Path) -> float:
    """Return the score of the unit with drop-ins, 0 to 10; fails if a line of them is not understood."""
    unit = folder / UNIT.name
    shutil.copy(UNIT, unit)
    beside = folder / f"{UNIT.name}.d"
    beside.mkdir()
    for path in drop_ins:
        shutil.copy(path, beside)
    status, said = analyze("security", unit, "--offline=true", "--no-pager")
    assert status == 0, said
    assert re.findall(r"^.*(?:service|conf):\d+:.*$", said, re.MULTILINE) == []
    (score,) = re.findall(r"^→ Overall exposure level for .*: ([\d.]+)", said, re.MULTILINE)
    return float(score)


def test_the_unit_is_hardly_exposed(tmp_path: Path) -> None:
    assert exposure(tmp_path) <= MOST_EXPOSED


@pytest.mark.parametrize("path", DROP_INS, ids=lambda path: str(path.name))
def test_a_drop_in_says_how_exposed_the_unit_is_without_and_with_it(tmp_path: Path, path: Path) -> None:
    """Versions of systemd weigh options differently, but by little."""
    (said,) = re.findall(
        r"^# systemd-analyze security: ([\d.]+) without, ([\d.]+) with this file\.$",
        path.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    (without, alone) = (tmp_path / "without", tmp_path / "with")
    without.mkdir()
    alone.mkdir()

    assert exposure(without) == pytest.approx(float(said[0]), abs=0.2)
    assert exposure(alone, path) == pytest.approx(float(said[1]), abs=0.2)


def test_the_documentation_has_a_row_for_every_drop_in_with_its_exposure() -> None:
    text = (SYSTEMD.parents[1] / "docs" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+\.conf)` \|.*\| ([\d.]+) \|$", text, re.MULTILINE))

    said = {
        path.name: re.findall(r", ([\d.]+) with this file", path.read_text(encoding="utf-8"))[0] for path in DROP_INS
    }
    assert rows == said


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """With a program in the place of ephmon, which is not installed here."""
    text = UNIT.read_text(encoding="utf-8")
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/usr/bin/ephmon", "/bin/true"), encoding="utf-8")

    assert "/usr/bin/ephmon run" in text
    assert analyze("verify", unit, "--man=no") == (0, "")


@pytest.mark.parametrize("path", [UNIT, *DROP_INS], ids=lambda path: str(path.name))
def test_systemd_249_knows_every_setting(path: Path) -> None:
    """It ignores what it does not know, so that a setting which is newer protects nothing there."""
    text = path.read_text(encoding="utf-8")

    assert set(re.findall(r"^(\w+)=", text, re.MULTILINE)) - KNOWN_TO_249 == set()
    assert "notify-reload" not in text


KNOWN_TO_249 = {
    "After",
    "AmbientCapabilities",
    "BindReadOnlyPaths",
    "CPUQuota",
    "CapabilityBoundingSet",
    "Description",
    "DevicePolicy",
    "Documentation",
    "DynamicUser",
    "Environment",
    "ExecReload",
    "ExecStart",
    "ExecStartPre",
    "ExecStopPost",
    "KeyringMode",
    "LimitCORE",
    "LimitNOFILE",
    "LoadCredential",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "MemoryHigh",
    "MemoryMax",
    "MemorySwapMax",
    "NoNewPrivileges",
    "NotifyAccess",
    "OOMScoreAdjust",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateTmp",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "RemoveIPC",
    "Restart",
    "RestartPreventExitStatus",
    "RestartSec",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "SetCredential",
    "StateDirectory",
    "StateDirectoryMode",
    "SystemCallArchitectures",
    "SystemCallErrorNumber",
    "SystemCallFilter",
    "TasksMax",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "Type",
    "UMask",
    "User",
    "WantedBy",
    "WatchdogSec",
}
"""Settings that systemd 249.11 was seen to read."""
