"""Facts: which network namespace something belongs to.

A namespace has a label, which people read, and an inode number, which identifies it while it lives (man 7 namespaces).
"""

from __future__ import annotations

from typing import NamedTuple

OWN_NETNS = "own"
"""The label of the network namespace that ephmon itself runs in."""
OTHER_NETNS = "other"
"""The label of every network namespace that ephmon does not watch."""
UNKNOWN_NETNS = "unknown"
"""The label where the caller was gone before its namespace could be read, or where reading it is forbidden."""


class Netns(NamedTuple):
    """A network namespace: the key of whatever is kept for each namespace."""

    label: str
    """`OWN_NETNS`, `OTHER_NETNS` or `UNKNOWN_NETNS`."""
    inode: int | None = None
    """None where it is not known, or where there are too many namespaces to tell them apart."""
