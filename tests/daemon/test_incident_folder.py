"""The directory of incidents holds whole files, few enough, and what is not ephmon's stays as it is.

Disks that are full or read-only are real ones, in the mounts of a process of their own.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.daemon.incident_folder import LEFTOVER_SECONDS, Folder, FolderError, names
from tests.namespaces import Agent, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

AT = 1_795_169_101.5
"""2026-11-20T10:05:01.5Z."""
NAME = "ephmon-20261120T100501Z-critical.json"
MIB = 1 << 20

_MOUNT = """
mount -t tmpfs -o size=64k none /mnt
mkdir /mnt/full /mnt/theirs
chown 1:1 /mnt/theirs && chmod 755 /mnt/theirs
mount --bind /mnt /srv
mount -o remount,bind,ro /srv
exec setpriv --bounding-set=-all --inh-caps=-all -- "$@"
"""
"""/mnt has room for 64 KiB, /srv is the same and read-only; then nothing is allowed that not everybody may do."""


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    path = tmp_path / "incidents"
    path.mkdir()
    return path


@pytest.fixture(name="agent")
def _agent() -> Iterator[Agent]:
    with Namespace() as ns:
        agent = Agent(ns.command("unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", _MOUNT, "sh"))
        try:
            yield agent
        finally:
            agent.close()


def folder(place: Path | str, max_files: int = 20, max_bytes: int = 20 * MIB) -> Folder:
    return Folder(directory=str(place), max_files=max_files, max_bytes=max_bytes)


def write(place: Path, at: float = AT, *, content: bytes = b"{}\n", max_files: int = 20, max_bytes: int = MIB) -> str:
    return Path(folder(place, max_files, max_bytes).write(content, reason="critical", at=at)).name


def listing(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def outcome(directory: str, size: int) -> str:
    """Write so many bytes, for `Agent.call`; return what is in the directory then, or what was said."""
    try:
        folder(directory).write(b"x" * size, reason="critical", at=AT)
    except FolderError as error:
        return f"{error.reason}: {error} {listing(Path(directory))}"
    return " ".join(listing(Path(directory)))


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_file_has_its_content_its_mode_and_a_name_that_tells_when_and_why(place: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = Path(folder(place).write(b'{"a": 1}\n', reason="exhaustion", at=AT))
    finally:
        os.umask(before)

    assert path == place / "ephmon-20261120T100501Z-exhaustion.json"
    assert path.read_bytes() == b'{"a": 1}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(place.iterdir()) == [path]


def test_two_of_one_second_are_two_files(place: Path) -> None:
    assert [write(place, content=b"%d" % number) for number in range(3)] == [
        NAME,
        "ephmon-20261120T100501Z-critical-2.json",
        "ephmon-20261120T100501Z-critical-3.json",
    ]
    assert sorted(path.read_bytes() for path in place.iterdir()) == [b"0", b"1", b"2"]


def test_daemons_that_write_at_the_same_time_lose_nothing(place: Path) -> None:
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(10)
        for _ in range(5):
            write(place, content=b"%d" % number, max_files=1000)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(path.read_bytes() for path in place.iterdir()) == sorted(
        b"%d" % n for n in range(8) for _ in range(5)
    )


def test_the_way_to_the_directory_may_have_links(place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place)

    assert write(tmp_path / "link") == NAME
    assert (place / NAME).exists()


@pytest.mark.parametrize("name", [NAME, f".{NAME}.part"])
def test_a_link_in_the_directory_is_not_followed(place: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious", encoding="ascii")
    (place / name).symlink_to(victim)

    assert write(place) == "ephmon-20261120T100501Z-critical-2.json"
    assert victim.read_text(encoding="ascii") == "precious"
    assert (place / name).is_symlink()


# --- what goes ----------------------------------------------------------------------------------------------------


def test_the_oldest_go_when_there_are_too_many(place: Path) -> None:
    written = [write(place, AT + number, max_files=3) for number in range(5)]

    assert listing(place) == written[2:]


def test_the_oldest_go_when_they_are_too_large_together(place: Path) -> None:
    written = [write(place, AT + number, content=b"x" * 400, max_bytes=1000) for number in range(4)]

    assert listing(place) == written[2:]


def test_of_a_thousand_as_many_stay_as_may(place: Path) -> None:
    there = [f"ephmon-20250101T{number // 60:06}Z-critical-{number % 60}.json" for number in range(1000)]
    for name in there:
        (place / name).touch()

    assert names(str(place)) == sorted(there, reverse=True)
    assert write(place, max_files=20) == NAME
    assert listing(place) == [*sorted(there)[-19:], NAME]


def test_what_ephmon_did_not_write_stays(place: Path, tmp_path: Path) -> None:
    theirs = [f"{NAME}.bak", "notes.json", "ephmon-20261120T100501Z-CRITICAL.json", "ephmon-1-critical.json"]
    for name in theirs:
        (place / name).write_text("", encoding="ascii")
    (place / "ephmon-20000101T000000Z-critical.json").mkdir()
    (place / "ephmon-20000102T000000Z-critical.json").symlink_to(tmp_path)
    before = set(listing(place))

    assert {write(place, AT + number, max_files=1) for number in range(3)} & before == set()
    assert set(listing(place)) == {*before, "ephmon-20261120T100503Z-critical.json"}


@pytest.mark.only_root("can give files away")
def test_what_another_user_wrote_stays(place: Path) -> None:
    os.chown(place / write(place), 65534, 65534)

    assert write(place, AT + 1, max_files=1) == "ephmon-20261120T100502Z-critical.json"
    assert len(listing(place)) == 2


def test_what_a_crash_left_behind_goes_and_what_is_being_written_stays(place: Path) -> None:
    young, old, theirs = (place / name for name in (".ephmon-check-1f.part", f".{NAME}.part", ".other.json.part"))
    for path in (young, old, theirs):
        path.write_text("{", encoding="ascii")
        os.utime(path, (AT - LEFTOVER_SECONDS - 1,) * 2)
    os.utime(young, (AT - LEFTOVER_SECONDS + 1,) * 2)

    assert write(place) == NAME
    assert set(listing(place)) == {NAME, young.name, theirs.name}
    folder(place).check(AT + 2)
    assert set(listing(place)) == {NAME, theirs.name}


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_report_larger_than_all_may_be_is_refused_and_removes_nothing(place: Path) -> None:
    write(place)
    with pytest.raises(FolderError, match=r"The incident takes 1\.0 MiB; set incidents\.max_mib above that\.") as e:
        write(place, AT + 1, content=b"x" * (MIB + 1))

    assert (e.value.reason, listing(place)) == ("too_large", [NAME])


def test_a_full_disk_is_said_and_nothing_of_the_file_stays(agent: Agent) -> None:
    assert agent.call(outcome, "/mnt/full", 100_000) == (
        "no_space: /mnt/full cannot be written (No space left on device): "
        "free some space, or choose another directory. []"
    )
    assert agent.call(outcome, "/mnt/full", 1_000) == NAME


def test_on_a_full_disk_what_is_there_stays(agent: Agent) -> None:
    assert agent.call(outcome, "/mnt/full", 40_000) == NAME
    assert agent.call(outcome, "/mnt/full", 40_000).endswith(
        f"free some space, or choose another directory. ['{NAME}']"
    )


def test_a_read_only_disk_is_said(agent: Agent) -> None:
    assert agent.call(outcome, "/srv/full", 10) == (
        "read_only: /srv/full cannot be written (Read-only file system): choose another directory, or allow this one "
        "with ReadWritePaths= or StateDirectory= in the systemd unit. []"
    )


@pytest.mark.only_root("can give a directory away")
def test_a_directory_of_somebody_else_is_said(agent: Agent) -> None:
    assert agent.call(outcome, "/mnt/theirs", 10) == (
        "permission: /mnt/theirs cannot be written (Permission denied): let the user that runs ephmon write there. []"
    )


@pytest.mark.parametrize(("name", "said"), [("absent", "No such file or directory"), ("a file", "Not a directory")])
def test_no_directory_is_said(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "a file").touch()
    for attempt in (
        write,
        lambda path: folder(path).check(AT),
        lambda path: folder(path).age_of_latest("critical", AT),
    ):
        with pytest.raises(FolderError, match=said) as caught:
            attempt(tmp_path / name)
        assert caught.value.reason == "no_directory"


# --- looking ------------------------------------------------------------------------------------------------------


def test_a_check_leaves_nothing(place: Path) -> None:
    folder(place).check(AT)

    assert listing(place) == []


def test_the_age_of_the_latest_is_that_of_its_reason_and_of_no_later_time(place: Path) -> None:
    for at in (AT - 3600, AT - 60, AT + 60):
        write(place, at)
    (place / "ephmon-20261399T100501Z-critical.json").touch()

    assert folder(place).age_of_latest("critical", AT) == 60.5
    assert folder(place).age_of_latest("exhaustion", AT) is None
