"""Loads the BPF program and takes it out again, many times, and says what is left of it; for `Namespace.call`."""

from __future__ import annotations

import ctypes
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from ephmon.kernel.bpf.libbpf import LIBRARY
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.deadline import Deadline

WARM_UP = 3
"""So many times until memory that is taken once has been taken."""
_DEADLINE_SECONDS, _PATIENCE_SECONDS = 20.0, 20.0
_MOST_MAPS = 64
_PINS = Path("/sys/fs/bpf")
_GET_DESCRIPTOR = {kind: f"bpf_{kind}_get_fd_by_id" for kind in ("prog", "map", "btf")}
"""Functions of libbpf that fail for what the kernel no longer has (bpf/bpf.h)."""


class _ProgramInfo(ctypes.Structure):
    """The beginning of struct bpf_prog_info (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("lengths", ctypes.c_uint32 * 2),
        ("instructions", ctypes.c_uint64 * 2),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("device_and_symbols", ctypes.c_uint64 * 6),
        ("btf_id", ctypes.c_uint32),
    )


class Known(NamedTuple):
    """An object that the kernel knows by a number, which it gives to no other for a long time."""

    kind: str
    id: int


class Footprint(NamedTuple):
    """What this process holds."""

    rss_bytes: int
    descriptors: int
    mapped_maps: int
    """Maps of BPF that are in its memory (/proc/PID/maps, man 5 proc)."""
    pins: int
    """Files in bpffs, of whomever."""


class Lifetimes(NamedTuple):
    """What came of loading the program many times."""

    seconds: float
    known: int
    """Programs, maps and BTFs that the kernel knew while they were loaded."""
    left: list[Known]
    """Those that it still knows."""
    before: Footprint
    """After the warm-up."""
    after: Footprint


def load_and_unload(times: int) -> Lifetimes:
    """Load, walk and unload, so many times after a warm-up."""
    for _ in range(WARM_UP):
        _live()
    before, started = footprint(), time.monotonic()
    known = [one for _ in range(times) for one in _live()]
    after, seconds = footprint(), time.monotonic() - started
    return Lifetimes(seconds, len(known), _left(known), before, after)


def footprint() -> Footprint:
    """Return what this process holds now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kib,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return Footprint(
        rss_bytes=int(kib) * 1024,
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        mapped_maps=Path("/proc/self/maps").read_text(encoding="utf-8").count("bpf-map"),
        pins=sum(1 for _ in _PINS.rglob("*")) if _PINS.exists() else 0,
    )


def _live() -> list[Known]:
    """Load, walk once and unload; return what the kernel knew in between."""
    reader = BindTableReader()
    try:
        reader.read(Deadline(_DEADLINE_SECONDS, time.monotonic))
        return loaded()
    finally:
        reader.close()


def loaded() -> list[Known]:
    """Return the programs that this process has open (/proc/PID/fdinfo, man 5 proc), with their maps and BTFs."""
    texts = [path.read_text(encoding="ascii") for path in Path("/proc/self/fdinfo").iterdir() if path.exists()]
    ids = [int(found[1]) for text in texts if (found := re.search(r"^prog_id:\t(\d+)$", text, re.MULTILINE))]
    return [one for program in ids for one in _known_with(program)]


def _known_with(program: int) -> list[Known]:
    maps = (ctypes.c_uint32 * _MOST_MAPS)()
    info = _ProgramInfo(nr_map_ids=_MOST_MAPS, map_ids=ctypes.addressof(maps))
    libbpf, length = ctypes.CDLL(LIBRARY), ctypes.c_uint32(ctypes.sizeof(info))
    descriptor = libbpf.bpf_prog_get_fd_by_id(program)
    try:
        if libbpf.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)):
            raise OSError(ctypes.get_errno(), "bpf_obj_get_info_by_fd")
    finally:
        os.close(descriptor)
    of_maps = [Known("map", number) for number in maps[: info.nr_map_ids]]
    return [Known("prog", program), *of_maps, Known("btf", info.btf_id)]


def _left(known: list[Known]) -> list[Known]:
    """Return what the kernel still has; it takes a moment until it has freed the last."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while (left := [one for one in known if is_there(one)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def is_there(one: Known) -> bool:
    """Tell whether the kernel has it."""
    descriptor: int = getattr(ctypes.CDLL(LIBRARY), _GET_DESCRIPTOR[one.kind])(one.id)
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0
