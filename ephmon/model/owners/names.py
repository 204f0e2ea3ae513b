"""Names of owners: what the path of a cgroup and a user id tell about who made a socket.

An owner is named by the first of these that is known:

container  any part of the path ends in 64 hexadecimal digits, as Docker, containerd, CRI-O and Podman name their
           cgroups, with systemd or without it: the first 12 of them. LXC names its own. A container that a user's
           service manager runs bears that manager's name too, since users name cgroups there as they like.
unit       the outermost systemd service or scope of the path (cg_path_get_unit(), src/basic/cgroup-util.c of systemd).
           Of a user's service manager also the unit below it; of a session also the slice of its user.
slice      the innermost systemd slice
cgroup     the path, where nobody follows systemd's naming
uid        the user id of the socket, where the path is `/` or is not known
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.foreign_text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_NAME = 96
"""Characters of a name; of a longer one the middle is left out."""


_CONTAINER = re.compile(r"(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?", re.DOTALL)
_MONITOR = re.compile(r"(?:.*-)?conmon-[0-9a-f]{64}\.scope", re.DOTALL)
_LXC = re.compile(r"lxc\.payload\.(.+)", re.DOTALL)
_UNIT = re.compile(r".+\.(?:service|scope)", re.DOTALL)
_USER_MANAGER = re.compile(r"user@[0-9]+\.service")
_USER_SLICE = re.compile(r"user-[0-9]+\.slice")
_SHORT_ID = 12


class OwnerKind(StrEnum):
    """What an owner's name is the name of, the most precise first."""

    CONTAINER = "container"
    UNIT = "unit"
    SLICE = "slice"
    CGROUP = "cgroup"
    UID = "uid"


class Owner(NamedTuple):
    """Whoever made sockets. `name` is printable, valid UTF-8 and at most `LONGEST_NAME` characters."""

    kind: OwnerKind
    name: str
    """`haproxy.service`, `3f2a9c0b1d4e`, `user-1000.slice/session-3.scope`, `uid 33`."""


def owner_of(path: str | None, uid: int | None) -> Owner | None:
    """Return the owner of a socket by the path of its cgroup and its user id, None if neither is known."""
    if path is not None and path.strip("/"):
        return _owner_of_path(path)
    return None if uid is None else Owner(OwnerKind.UID, f"uid {uid}")


def _owner_of_path(path: str) -> Owner:
    parts = [part for part in path.split("/") if part]
    if (container := _container(parts)) is not None:
        # A user may name cgroups below their own service manager as they like.
        manager = next((f"{part}/" for part in parts if _USER_MANAGER.fullmatch(part)), "")
        return Owner(OwnerKind.CONTAINER, _label(f"{manager}{container}"))
    if (unit := _unit(parts)) is not None:
        return Owner(OwnerKind.UNIT, _label(unit))
    slices = [part for part in parts if part.endswith(".slice")]
    return Owner(OwnerKind.SLICE, _label(slices[-1])) if slices else Owner(OwnerKind.CGROUP, _label(path))


def _container(parts: Iterable[str]) -> str | None:
    """Return the innermost container of a path. A container's monitor (conmon) is not inside it."""
    found = None
    for part in parts:
        if (match := _LXC.fullmatch(part)) is not None:
            found = match[1]
        elif (match := _CONTAINER.fullmatch(part)) is not None and not _MONITOR.fullmatch(part):
            found = match[1][:_SHORT_ID]
    return found


def _unit(parts: list[str]) -> str | None:
    """Return the outermost unit of a path: with the unit below a user's manager, and with the slice of a session."""
    index = next((index for index, part in enumerate(parts) if _UNIT.fullmatch(part)), None)
    if index is None:
        return None
    unit = parts[index]
    if _USER_MANAGER.fullmatch(unit):
        below = next((part for part in parts[index + 1 :] if _UNIT.fullmatch(part) and part != "init.scope"), None)
        return unit if below is None else f"{unit}/{below}"
    if index and unit.startswith("session-") and _USER_SLICE.fullmatch(parts[index - 1]):
        return f"{parts[index - 1]}/{unit}"
    return unit


def _label(name: str) -> str:
    """Return a name fit for a label: printable, valid UTF-8, and the middle left out of a long one."""
    plain = printable(name)
    half = (LONGEST_NAME - 1) // 2
    return plain if len(plain) <= LONGEST_NAME else f"{plain[:half]}\N{HORIZONTAL ELLIPSIS}{plain[-half:]}"
