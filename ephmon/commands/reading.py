"""What every command reads first: the configuration, and the kernel, once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.config.settings import Config, load
from ephmon.kernel.source import SocketSource

if TYPE_CHECKING:
    from ephmon.facts.snapshot import NamespaceSnapshot, Snapshot

DEFAULT_CONFIG = Path("/etc/ephmon/config.yaml")


def configuration(path: Path | None) -> Config:
    """Return the configuration of the file given, else of the default file if it is there, else the defaults.

    Raises:
        ConfigError: The file cannot be read or is wrong.
    """
    if path is not None:
        return load(path)
    return load(DEFAULT_CONFIG) if os.path.lexists(DEFAULT_CONFIG) else Config()


def read(config: Config, proc: Path) -> Snapshot:
    """Poll once, as the configuration says.

    Raises:
        KernelError: There is no answer.
    """
    source = SocketSource(proc=proc, clock=time.monotonic, wall_clock=time.time, mode=config.poll.backend)
    return source.read(config.poll.deadline_seconds)


def ports_to_keep(namespace: NamespaceSnapshot, config: Config) -> frozenset[int] | None:
    """Return the ports that a wider port range should leave out; None where it is not known who listens."""
    if namespace.tcp is None or namespace.tcp.listening_ports is None:
        return None
    return namespace.tcp.listening_ports | config.rules.own_ports
