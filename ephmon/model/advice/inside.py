"""Advice about another network namespace: where its commands have to be run."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon.facts.namespaces import OWN_NETNS

if TYPE_CHECKING:
    from ephmon.model.advice.causes import Advice
    from ephmon.model.report import NamespaceReport

_ACTS_ON_A_NAMESPACE = re.compile(r"`(?:sysctl|ss) ")
"""Commands whose effect or output is of the namespace that they are run in."""


def inside(advice: Advice, namespace: NamespaceReport) -> Advice:
    """Return the advice as somebody outside the namespace can follow it: each command that needs it says how to enter.

    Our own namespace needs nothing.
    """
    if namespace.netns == OWN_NETNS:
        return advice
    shell = f"`{enter(namespace)}`"
    steps = (
        f"{step.removesuffix('.')}, in a shell inside the namespace, which {shell} opens."
        if _ACTS_ON_A_NAMESPACE.search(step)
        else step
        for step in advice.steps
    )
    return replace(advice, steps=tuple(steps))


def enter(namespace: NamespaceReport) -> str:
    """Return the command that opens a shell in a namespace, as root (man 1 nsenter, man 8 lsns)."""
    if namespace.mount is not None:
        return f"nsenter --net={shlex.quote(f'/run/netns/{namespace.mount}')}"
    return f'nsenter --net -t "$(lsns -no PID {namespace.inode} | head -n 1)"'
