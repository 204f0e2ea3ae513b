"""The command line: what may stand on it, and which command that is.

Exit status: 0 is done, 1 is failed, 2 is wrong usage or configuration; those of `ephmon check` are a plugin's.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ephmon import __version__, log
from ephmon.commands import arguments, check, check_config, headroom, pools
from ephmon.commands.reading import configuration
from ephmon.commands.terminal import complain
from ephmon.daemon import signals
from ephmon.errors import ConfigError, EphmonError, UsageError, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ephmon.config.settings import Config

PROC = Path("/proc")

DONE, FAILED, WRONG_USAGE = 0, 1, 2
_INTERRUPTED = 130
_CHECK = "check"

_EPILOG = """\
Addresses are literals; IPv6 is written [address]:port. Without --config the file /etc/ephmon/config.yaml is read if it
exists, else the built-in defaults hold. Exit status: 0 done, 1 it failed, 2 wrong usage or configuration; of check: 0
OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."""


def entry_point() -> NoReturn:
    """Run the command line of this process and exit."""
    sys.exit(main(sys.argv[1:]))


def main(words: Sequence[str]) -> int:
    """Run a command and return its exit status. Errors are one plain sentence on standard error."""
    if _command_of(words) == _CHECK:
        return check.guard(partial(_run_command, words))
    try:
        return _run_command(words)
    except (UsageError, ConfigError) as error:
        complain(error)
        return WRONG_USAGE
    except EphmonError as error:
        complain(error)
        return FAILED
    except BrokenPipeError:
        return FAILED  # the reader of our output has had enough (`ephmon pools | head`)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run_command(words: Sequence[str]) -> int:
    options, unknown = _parser().parse_known_args(words)
    if unknown:
        options.refuse(f"unrecognized arguments: {' '.join(map(quote, unknown))}")
    status: int = options.command(options)
    return status


def _command_of(words: Sequence[str]) -> str | None:
    """Return which command is meant, also where the words before it are wrong."""
    values = [*words]
    while values:
        word = values.pop(0)
        if not word.startswith("-"):
            return word
        if word == "--config" and values:
            values.pop(0)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(
        prog="ephmon",
        description="How many more connections this host can open, for every destination, before connect() fails.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.set_defaults(proc=PROC)
    parser.add_argument("--version", action="version", version=f"ephmon {__version__}")
    _add_config(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    config = arguments.Parser(add_help=False)
    # Without it, what stands before the command is to hold.
    _add_config(config, default=argparse.SUPPRESS)
    add = partial(_add, commands, [config])
    _describe_run(add("run", _run, "run the daemon in the foreground"))
    _describe_pools(add("pools", pools.run, "poll once and print the pools, the fullest first"))
    _describe_headroom(add("headroom", headroom.run, "tell how many more sockets one pool has ports for, and why"))
    _describe_check(add(_CHECK, check.run, "poll once and answer as a plugin of Nagios or Icinga does"))
    _describe_check_config(
        add("check-config", check_config.run, "check a configuration file and print what is in force")
    )
    _describe_incidents(add("incidents", _list_incidents, "list the incidents that the daemon has written"))
    _describe_incident(add("incident", _show_incident, "print one incident, from this host or another"))
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config", type=arguments.file, default=default, metavar="FILE", help="the configuration file; it must exist"
    )


def _add(
    commands: argparse._SubParsersAction[arguments.Parser],
    parents: Sequence[arguments.Parser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", parents=parents, allow_abbrev=False
    )
    parser.set_defaults(command=command, refuse=parser.error)
    return parser


def _describe_run(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--listen", type=arguments.listen, metavar="HOST:PORT", help="serve HTTP here instead of at `listen`"
    )


def _describe_pools(listing: argparse.ArgumentParser) -> None:
    listing.add_argument("--json", action="store_true", help="print JSON, all pools unless --top says otherwise")
    listing.add_argument("--top", type=arguments.positive, metavar="N", help="print at most N pools (table: pools.top)")
    listing.add_argument(
        "--destination",
        type=arguments.destination,
        metavar="ADDR[:PORT]",
        help="print only the pools toward it, with advice on those that reached a threshold",
    )
    listing.add_argument(
        "--owners",
        action="store_true",
        help="tell who holds the ports, the blocked ones too: units, containers, users and, where permitted, processes",
    )


def _describe_headroom(room: argparse.ArgumentParser) -> None:
    _add_destination(room)
    room.add_argument("--bind", type=arguments.address, metavar="SOURCE", help="what bind(SOURCE, 0) has left")
    room.add_argument("--udp", action="store_true", help="UDP instead of TCP")
    room.add_argument(
        "--probe", action="store_true", help="ask the kernel about each port in doubt (CAP_NET_ADMIN, Linux 6.3)"
    )
    room.add_argument("--json", action="store_true", help="print JSON")


def _describe_check(plugin: argparse.ArgumentParser) -> None:
    _add_destination(plugin)
    for severity in ("warning", "critical"):
        plugin.add_argument(
            f"--{severity}",
            type=arguments.ratio,
            metavar="RATIO",
            help=f"the utilisation ratio that is {severity.upper()}, of every pool, instead of the configuration's",
        )


def _add_destination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", nargs="?", type=arguments.destination_port, metavar="DESTINATION:PORT")
    parser.add_argument(
        "--from", dest="source", type=arguments.address, metavar="SOURCE", help="instead of what routing chooses"
    )


def _describe_check_config(checked: argparse.ArgumentParser) -> None:
    checked.add_argument(
        "file", nargs="?", type=arguments.file, metavar="FILE", help="the file to check instead of --config"
    )
    checked.add_argument(
        "--pool",
        type=arguments.pool,
        metavar="KIND,SOURCE[,DESTINATION:PORT]",
        help="print the thresholds of this pool, and which override gave them",
    )


def _describe_incidents(listing: argparse.ArgumentParser) -> None:
    listing.add_argument("--json", action="store_true", help="print JSON")


def _describe_incident(one: argparse.ArgumentParser) -> None:
    one.add_argument("file", type=arguments.file, metavar="FILE", help="a file that `ephmon incidents` lists")
    one.add_argument("--json", action="store_true", help="print JSON")


def _list_incidents(options: argparse.Namespace) -> int:
    # Only these two commands need what reads incidents.
    from ephmon.commands import incidents  # noqa: PLC0415

    return incidents.run(options)


def _show_incident(options: argparse.Namespace) -> int:
    from ephmon.commands import incident  # noqa: PLC0415

    return incident.run(options)


def _run(options: argparse.Namespace) -> int:
    signals.block()
    # Only the daemon needs the HTTP side and what it drags in.
    from ephmon.daemon.loop import Daemon  # noqa: PLC0415

    def read_config() -> Config:
        config = configuration(options.config)
        return replace(config, listen=options.listen) if options.listen else config

    config = read_config()
    log.set_up(config.log.level, config.log.format)
    Daemon(read_config, proc=options.proc).run()
    return DONE
