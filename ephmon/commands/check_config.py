"""`ephmon check-config`: checks a configuration and prints what is in force, or the thresholds of one pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ephmon.commands.reading import DEFAULT_CONFIG, load_config
from ephmon.commands.terminal import print_answer
from ephmon.config.file import quote_path, read_text
from ephmon.config.settings import describe
from ephmon.config.thresholds import describe_thresholds, override_line
from ephmon.config.yaml_document import compose
from ephmon.errors import UsageError
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.pools.ignored_destinations import is_ignored
from ephmon.model.pools.tcp_connect import connect_key

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from ephmon.config.settings import Config
    from ephmon.model.pools.kinds import PoolKey


def run(options: argparse.Namespace) -> int:
    """Print what is in force, or with --pool the thresholds of that pool and where they come from, both as YAML."""
    if options.file and options.config:
        raise UsageError("check-config takes one file: give FILE or --config, not both.")
    path = options.file or options.config
    config = load_config(path)
    if options.pool:
        print_answer(
            _thresholds(config, options.pool, path or (DEFAULT_CONFIG if os.path.lexists(DEFAULT_CONFIG) else None))
        )
        return 0
    print_answer(describe(config))
    return 0


def _thresholds(config: Config, key: PoolKey, path: Path | None) -> str:
    index = config.thresholds.override_of(key)
    origin = "No override matches: these are the general thresholds."
    if index is not None:
        override = config.thresholds.overrides[index]
        own = [severity for severity in Severity if getattr(override, severity) is not None]
        general = [severity for severity in Severity if severity not in own]
        origin = f"The first override that matches is thresholds.overrides[{index}]{_where(path, index)}."
        if general:
            verb = "are the general ones" if len(general) > 1 else "is the general one"
            origin += f" Its {' and '.join(general)} {verb}."
    sentences = [origin]
    ends = connect_key(key)
    if is_ignored((ends.destination, ends.destination_port) if ends else None, config.listing.ignore_destinations):
        sentences.append("But pools.ignore_destinations excludes this pool.")
    return "".join([*(f"# {sentence}\n" for sentence in sentences), describe_thresholds(config.thresholds.of(key))])


def _where(path: Path | None, index: int) -> str:
    """Return the file and line of an override, "" if the file no longer has it: it is read a second time here."""
    line = override_line(compose(read_text(path)), index) if path else None
    return f" ({quote_path(str(path))}:{line})" if line else ""
