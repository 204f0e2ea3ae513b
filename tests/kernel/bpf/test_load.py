"""Loading the BPF program: each refusal is made for real and is one sentence, and what is permitted suffices."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from ephmon.kernel.bpf import load as loading
from ephmon.kernel.bpf.libbpf import LIBRARY
from ephmon.kernel.bpf.load import BpfUnavailableError, load
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.proc.sysctl import read_release
from tests.kernel import seccomp
from tests.kernel.bpf import walks
from tests.namespaces import Agent, Namespace
from tests.ordinary_user import NOBODY, as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC, SYS = Path("/proc"), Path("/sys")
_CLONE_NEWUSER = 0x10000000
_KEEP_CAPABILITIES, _NO_NEW_PRIVILEGES, _CAPSET_VERSION_3 = 8, 38, 0x20080522
_CAP_PERFMON, _CAP_BPF = 38, 39


LACKS_CAPABILITIES = (
    "Loading a BPF program takes the capabilities CAP_BPF and CAP_PERFMON, and this process lacks them."
)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


@pytest.fixture(name="readable")
def _readable(ns: Namespace) -> Iterator[Namespace]:
    """The agent with objects that every user can read, wherever the checkout is."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for path in (loading.COPYING, loading.DIRECT):
            shutil.copy(path, folder)
        ns.call(use_objects_in, Path(folder))
        yield ns


def use_objects_in(folder: Path) -> None:
    loading.COPYING, loading.DIRECT = (folder / path.name for path in (loading.COPYING, loading.DIRECT))


def refusal(*, proc: Path = PROC, sys_root: Path = SYS, library: str = LIBRARY, object_: Path | None = None) -> str:
    """Try to load, and return why that cannot be, or nothing if it can."""
    if object_:
        loading.COPYING = loading.DIRECT = object_
    try:
        load({}, proc=proc, sys_root=sys_root, library=library).close()
    except BpfUnavailableError as error:
        return str(error)
    return ""


def refusal_of_bpf(number: int) -> str:
    """Let bpf() fail in this process from now on, and try to load."""
    seccomp.refuse(seccomp.BPF, number)
    return refusal()


def refusal_of_nobody_with(capabilities: int) -> str:
    """Become nobody with these capabilities alone, and try to load."""
    become_nobody_with(capabilities)
    return refusal()


def refusal_in_another_user_namespace() -> str:
    """Go into a new user namespace, which gives every capability there, and try to load."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    return refusal()


def refusal_with_few_descriptors(number: int) -> str:
    """Let this process open no more descriptors than these, and try to load."""
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + number, used + number))
    return refusal()


def refusal_behind(script: str) -> str:
    """Try to load where a shell script, run by root in mounts of its own, has hidden something."""
    with Namespace() as ns:
        command = ns.command("unshare", "--mount", "--propagation", "private", "--", "sh", "-euc", script, "sh")
        agent = Agent(command)
        try:
            return agent.call(refusal)
        finally:
            agent.close()


def assert_one_sentence(text: str) -> None:
    assert len(text.split()) <= 25
    assert text[0].isupper() or text.startswith(("lib", "/"))
    assert text.endswith(".")
    assert "\n" not in text


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_library_that_is_not_there_is_named_with_its_package() -> None:
    text = refusal(library="libbpf-of-nobody.so.1")

    assert_one_sentence(text)
    assert text.startswith("libbpf-of-nobody.so.1 cannot be loaded (")
    assert text.endswith("install libbpf 1, the package libbpf1 on Debian and Ubuntu.")


@pytest.mark.only_root
def test_a_libbpf_that_was_renamed_is_missed(tmp_path: Path) -> None:
    """For real, in an overlay over the directory that it is in."""
    text = refusal_behind(RENAME_LIBBPF.format(folder=folder_of_libbpf(), scratch=tmp_path))

    assert text == (
        "libbpf.so.1 cannot be loaded (libbpf.so.1: cannot open shared object file: No such file or directory); "
        "install libbpf 1, the package libbpf1 on Debian and Ubuntu."
    )


RENAME_LIBBPF = """
mount -t tmpfs none {scratch}
mkdir {scratch}/upper {scratch}/work
mount -t overlay -o lowerdir={folder},upperdir={scratch}/upper,workdir={scratch}/work overlay {folder}
mv {folder}/libbpf.so.1 {folder}/renamed
exec "$@"
"""


def folder_of_libbpf() -> Path:
    """Return the directory in which the dynamic linker finds it."""
    ctypes.CDLL(LIBRARY)
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    (path,) = {line.split()[-1] for line in lines if "/libbpf.so" in line}
    return Path(path).parent


def test_a_library_that_is_no_libbpf_is_not_used() -> None:
    text = refusal(library="libc.so.6")

    assert_one_sentence(text)
    assert text.startswith("libc.so.6 is not libbpf 1, because it lacks a function (")


def test_a_kernel_that_is_too_old_is_not_tried(tmp_path: Path) -> None:
    file = tmp_path / "sys/kernel/osrelease"
    file.parent.mkdir(parents=True)
    file.write_text("5.15.0-91-generic\n", encoding="ascii")

    assert refusal(proc=tmp_path) == "Linux 5.15 is too old: BPF can walk the bind table from Linux 6.1 on."


def test_a_kernel_without_type_information_is_not_tried(tmp_path: Path) -> None:
    text = refusal(sys_root=tmp_path)

    assert_one_sentence(text)
    assert text.startswith(f"{tmp_path}/kernel/btf/vmlinux is missing")
    assert "CONFIG_DEBUG_INFO_BTF" in text


@pytest.mark.only_root
def test_a_masked_sys_kernel_btf_is_named() -> None:
    text = refusal_behind('mount -t tmpfs none /sys/kernel/btf; exec "$@"')

    assert_one_sentence(text)
    assert text.startswith("/sys/kernel/btf/vmlinux is missing")


@pytest.mark.only_root
def test_an_object_that_cannot_be_read_is_named(ns: Namespace, tmp_path: Path) -> None:
    missing = tmp_path / "missing.bpf.o"
    text = ns.call(refusal, object_=missing)

    assert_one_sentence(text.replace(str(missing), "OBJECT"))
    assert text == f"The BPF program {missing} cannot be read: No such file or directory."


@pytest.mark.only_root
def test_a_damaged_object_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.bpf.o"
    damaged.write_bytes(loading.COPYING.read_bytes()[:1000])
    with Namespace() as ns:
        text = ns.call(refusal, object_=damaged)

    assert_one_sentence(text)
    assert text.startswith("The kernel refuses the BPF program (")


@pytest.mark.only_root
def test_an_ordinary_user_is_told_which_capabilities_are_missing(readable: Namespace) -> None:
    assert readable.call(as_ordinary_user, refusal) == LACKS_CAPABILITIES


@pytest.mark.only_root
@pytest.mark.parametrize("capability", [_CAP_BPF, _CAP_PERFMON], ids=["CAP_BPF", "CAP_PERFMON"])
def test_one_of_the_two_capabilities_does_not_suffice(readable: Namespace, capability: int) -> None:
    assert readable.call(refusal_of_nobody_with, 1 << capability) == LACKS_CAPABILITIES


@pytest.mark.only_root
def test_root_without_capabilities_is_told_so(ns: Namespace) -> None:
    ns.call(walks.drop_capabilities)

    assert ns.call(refusal) == LACKS_CAPABILITIES


def test_capabilities_of_another_user_namespace_do_not_count_and_that_is_said(ns: Namespace) -> None:
    text = ns.call(refusal_in_another_user_namespace)

    assert_one_sentence(text)
    assert text.startswith("This process is in a user namespace of its own, as in a rootless container")


@pytest.mark.only_root
def test_where_descriptors_run_out_the_limit_is_named(ns: Namespace) -> None:
    text = ns.call(refusal_with_few_descriptors, 4)

    assert_one_sentence(text)
    assert text.startswith("The BPF program cannot be loaded (Too many open files); raise the limit of open files")


@pytest.mark.only_root
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_sandbox_that_forbids_the_system_call_is_told_apart(ns: Namespace, number: int) -> None:
    text = ns.call(refusal_of_bpf, number)

    assert_one_sentence(text)
    assert text.startswith("The system call bpf() is not allowed here (")
    assert "SystemCallFilter=bpf" in text


@pytest.mark.only_root
def test_lockdown_is_named_where_the_kernel_says_that_it_is_in_force(ns: Namespace, tmp_path: Path) -> None:
    """It cannot be undone, so only its file is made here, and bpf() is refused by a sandbox."""
    for name, text in {
        "kernel/security/lockdown": "none integrity [confidentiality]\n",
        "kernel/btf/vmlinux": "",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="ascii")
    ns.call(seccomp.refuse, seccomp.BPF)

    assert ns.call(refusal, sys_root=tmp_path) == (
        "The kernel is locked down (lockdown=confidentiality), so BPF may not read its memory."
    )


@pytest.mark.only_root
def test_what_the_verifier_refuses_comes_with_its_last_words(ns: Namespace, tmp_path: Path) -> None:
    """The licence is part of the object; a program without a GPL one may not read the kernel's memory."""
    proprietary = tmp_path / "proprietary.bpf.o"
    content = loading.COPYING.read_bytes()
    assert content.count(b"Dual BSD/GPL\0") == 1
    proprietary.write_bytes(content.replace(b"Dual BSD/GPL\0", b"Proprietary!\0"))
    text = ns.call(refusal, object_=proprietary)

    assert_one_sentence(text)
    assert text.startswith("The kernel refuses the BPF program (Invalid argument: ")
    assert "GPL" in text


@pytest.mark.only_root
def test_a_program_that_reads_other_settings_than_proc_shows_is_not_trusted(ns: Namespace, tmp_path: Path) -> None:
    """As it would if it looked for them in the wrong places."""
    for file in (PROC / "sys/net/ipv4").glob("*"):
        with suppress(OSError):
            copy = tmp_path / "sys/net/ipv4" / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    (tmp_path / "sys/kernel").symlink_to(PROC / "sys/kernel")
    (tmp_path / "self").symlink_to(f"/proc/{ns.pid}")
    agreed = ns.call(refusal_of_reader, tmp_path)
    (tmp_path / "sys/net/ipv4/ip_local_port_range").write_text("32768\t60998\n", encoding="ascii")

    assert agreed == ""
    assert ns.call(refusal_of_reader, tmp_path) == (
        "BPF reads other settings of this namespace than /proc shows, so it is not trusted with the ports."
    )


def refusal_of_reader(proc: Path) -> str:
    try:
        BindTableReader(proc=proc).close()
    except BpfUnavailableError as error:
        return str(error)
    return ""


# --- what suffices ---------------------------------------------------------------------------------------------------


@pytest.mark.only_root
def test_two_capabilities_suffice_for_loading_and_none_for_walking(readable: Namespace) -> None:
    readable.call(become_nobody_with, 1 << _CAP_BPF | 1 << _CAP_PERFMON)
    readable.call(walks.open_reader)
    readable.call(walks.drop_capabilities)

    assert readable.call(walks.walk).inode == readable.inode


def become_nobody_with(wanted: int) -> None:
    """Become uid 65534 with these capabilities alone, that can gain nothing (man 2 capset, man 2 prctl)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPSET_VERSION_3, 0)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    capabilities = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    kept = libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    assert (kept, libc.capset(header, capabilities), libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)) == (0, 0, 0)


@pytest.mark.only_root
def test_the_cheaper_object_is_used_from_linux_6_2_on(ns: Namespace) -> None:
    assert ns.call(walks.is_direct) == (read_release(PROC) >= (6, 2))


@pytest.mark.only_root
def test_two_readers_walk_side_by_side(ns: Namespace) -> None:
    other = ns.another_agent()
    first, second = ns.call(walks.walk), other.call(walks.walk)

    assert first.inode == second.inode == ns.inode
