"""Incidents on their whole way: real connections that use ports up, the daemon as a process, files, the commands."""

from __future__ import annotations

import errno
import json
import re
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests import sockets
from tests.commands.answers import answer
from tests.namespaces import Namespace
from tests.processes import Running, ephmon, put, run
from tests.sockets import ALL_PORTS, FillResult, Recipe
from tests.tracing import host_pids, only_root, stopping, tracing_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, PORT = "127.0.0.1", 7411
PORTS = 1000
CONFIG = """\
poll: {{interval: 100ms, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}}
pools: {{ignore_destinations: ["127.0.0.1:19100"]}}
incidents: {{directory: {}}}
"""
KEPT = "ephmon_incidents_total"
WRITTEN = "An incident was written."
"""What tells of it in the log: asking for the metrics again and again would use the ports up, too."""
_FULL = 'mount -t tmpfs -o size=64k none "$1"; head -c 64K /dev/zero >"$1/all of it"; shift; exec "$@"'


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS - 1}")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        yield ns


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    path = tmp_path / "incidents"
    path.mkdir()
    return path


@pytest.fixture(name="config")
def _config(tmp_path: Path, place: Path) -> Path:
    return put(tmp_path / "config.yaml", CONFIG.format(place))


@contextmanager
def mounted(ns: Namespace, script: str, *words: str | Path) -> Iterator[Running]:
    """Run a daemon in mounts of its own, which a script makes."""
    seen = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", script, "sh"]
    with stopping(Running(ns, [*seen, *map(str, words)])) as daemon:
        yield daemon


def fill(ns: Namespace, number: int) -> None:
    assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=number) == FillResult(number, 0)


def kept(place: Path) -> list[Path]:
    return sorted(place.iterdir())


def shown(path: Path) -> str:
    result = run(ephmon("incident", path))
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_a_pool_that_real_connections_use_up_is_one_file_that_tells_of_it(
    ns: Namespace, config: Path, place: Path
) -> None:
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        assert daemon.wait_for(poll_success=1)[KEPT] == 0
        fill(ns, 890)
        daemon.wait_for_polls(3)
        assert kept(place) == []

        fill(ns, 20)
        daemon.wait_for_line(WRITTEN)
        assert daemon.wait_for_polls(5)[KEPT] == 1
        assert daemon.stop() == 0

    (path,) = kept(place)
    text = shown(path)
    (percent,) = re.findall(rf"tcp_connect from {HERE} to {HERE}:{PORT} is at (9[01]\.\d)%: ", text.splitlines()[0])
    in_use = round(float(percent) * PORTS / 100)
    assert f"{PORTS - in_use} of {PORTS} ports are left." in text.splitlines()[0]
    assert f"\ntcp_connect  {HERE}  {HERE}:{PORT}   {percent}     {in_use} " in text
    assert f"\nPorts of tcp_connect from {HERE} to {HERE}:{PORT} are held by: " in text
    assert "\n  Likely cause: Connections to 127.0.0.1:7411 stay open" in text
    assert sum("An incident was written." in line for line in daemon.lines) == 1
    listed = run(ephmon("incidents", "--config", config)).stdout.splitlines()
    assert len(listed) == 2
    assert listed[1].split()[1:] == [
        *("critical", percent, "tcp_connect", "from", HERE, "to", f"{HERE}:{PORT}"),
        str(path),
    ]


def test_blocked_ports_are_one_too(ns: Namespace, config: Path, place: Path) -> None:
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for(poll_success=1)
        holder = Recipe(bind=(HERE, 0), listen=1)
        assert ns.call(sockets.open_sockets, holder, tag="holders", limit=950) == FillResult(950, 0)
        daemon.wait_for_line(WRITTEN)

    text = shown(kept(place)[0])
    assert re.search(r" 9\d\.\d% of the usable ports are blocked for every connect\(\)\.", text.splitlines()[0])
    assert "\nBlocked ports are held by: " in text


@only_root
@host_pids
def test_the_first_connect_that_fails_is_one_of_its_own(ns: Namespace, config: Path, place: Path) -> None:
    with tracing_daemon(ns, config) as daemon:
        daemon.wait_for(poll_success=1)
        fill(ns, 950)
        daemon.wait_for_line(WRITTEN)
        assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=ALL_PORTS) == FillResult(50, errno.EADDRNOTAVAIL)
        daemon.wait_for_line(WRITTEN)

    critical, exhaustion = kept(place)
    assert (critical.name[-13:], exhaustion.name[-15:]) == ("critical.json", "exhaustion.json")
    text = shown(exhaustion)
    summary = f"A connect() from {HERE} to {HERE}:{PORT} found no port. It was made by python"
    assert summary in text.splitlines()[0]
    assert f" {HERE} to {HERE}:{PORT}  python" in text
    assert "100.0    1000 " in text


def test_a_full_disk_costs_no_poll(ns: Namespace, config: Path, place: Path) -> None:
    with mounted(ns, _FULL, place, *ephmon("run", "--config", config)) as daemon:
        daemon.wait_for(poll_success=1)
        fill(ns, 950)
        daemon.wait_for_line("Incidents cannot be written: ")
        metrics = daemon.wait_for_polls(3)

        assert (metrics["ephmon_poll_success"], metrics[KEPT]) == (1, 0)
        assert metrics['ephmon_incident_failures_total{reason="no_space"}'] == 1
    assert sum("Incidents cannot be written: " in line for line in daemon.lines) == 1


def test_a_reload_names_another_directory(ns: Namespace, config: Path, tmp_path: Path, place: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for(poll_success=1)
        put(config, CONFIG.format(other))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")
        fill(ns, 950)
        daemon.wait_for_line(WRITTEN)

    assert (len(kept(place)), len(kept(other))) == (0, 1)


# --- the commands -------------------------------------------------------------------------------------------------


def sample(ns: Namespace, config: Path, place: Path) -> Path:
    """Have the daemon keep an incident."""
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        fill(ns, 950)
        daemon.wait_for_line(WRITTEN)
    return kept(place)[0]


def test_both_commands_print_json_for_programs(ns: Namespace, config: Path, place: Path) -> None:
    path = sample(ns, config, place)
    listed = json.loads(answer("incidents", "--config", str(config), "--json").out)
    printed = json.loads(answer("incident", str(path), "--json").out)

    assert printed == json.loads(path.read_bytes())
    (one,) = listed["incidents"]
    assert (listed["schema"], listed["directory"]) == (1, str(place))
    assert {name: one[name] for name in ("file", "at", "reason", "summary", "error")} == {
        "file": str(path),
        **{name: printed[name] for name in ("at", "reason", "summary")},
        "error": None,
    }
    assert one["worst_pool"] == {
        "netns": "own",
        "kind": "tcp_connect",
        "source": HERE,
        "destination": HERE,
        "destination_port": PORT,
        "utilisation_ratio": printed["snapshot"]["pools"][0]["utilisation_ratio"],
    }


def damaged(place: Path, name: str, content: bytes) -> Path:
    path = place / name
    path.write_bytes(content)
    return path


def test_a_list_has_the_files_that_cannot_be_read_too(ns: Namespace, config: Path, place: Path) -> None:
    path = sample(ns, config, place)
    cut = damaged(place, "ephmon-20010101T000000Z-critical.json", path.read_bytes()[:1000])
    damaged(place, "notes.json", b"")
    text = answer("incidents", "--config", str(config))
    listed: list[dict[str, Any]] = json.loads(answer("incidents", "--config", str(config), "--json").out)["incidents"]

    problem = "It is cut off or damaged at line 1, column "
    lines = text.out.splitlines()
    assert (text.status, len(lines)) == (0, 4)
    assert lines[2].split() == ["?", "?", "-", "-", str(cut)]
    assert lines[3].startswith(f"{cut} cannot be shown. {problem}")
    assert [one["file"] for one in listed] == [str(path), str(cut)]
    assert listed[1]["error"].startswith(problem)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"document": "ephmon incident", "schema": 2}', b"\x00\x1b[2J"])
def test_a_file_that_cannot_be_shown_is_one_sentence_and_a_failure(place: Path, content: bytes) -> None:
    path = damaged(place, "x.json", content)
    got = answer("incident", str(path))

    assert (got.status, got.out) == (1, "")
    assert got.err.startswith(f"ephmon: {path} cannot be shown. It ")
    assert got.err.count("\n") == 1
    assert got.err[:-1].isprintable()


def test_a_name_is_shown_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    assert answer("incident", str(tmp_path / "a\x1b[2J\nb")).err.count("\n") == 1
    assert "\x1b" not in answer("incident", str(tmp_path / "a\x1b[2J\nb")).err


def test_an_empty_list_and_none_at_all_are_told_apart(config: Path, place: Path, tmp_path: Path) -> None:
    empty = answer("incidents", "--config", str(config))
    put(config, "{}\n")
    unset = answer("incidents", "--config", str(config))
    put(config, CONFIG.format(tmp_path / "absent"))
    absent = answer("incidents", "--config", str(config))

    assert empty == (0, f"There are no incidents in {place}.\n", "")
    assert unset == (
        *(1, ""),
        "ephmon: incidents.directory is not set, so no incidents are written; set it in the configuration.\n",
    )
    assert absent == (1, "", f"ephmon: {tmp_path}/absent cannot be listed: No such file or directory.\n")
