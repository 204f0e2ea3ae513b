"""The command line: parses the arguments and runs the command.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration; `ephmon check` has the statuses of a monitoring plugin.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon import __version__, log
from ephmon.commands import arguments, check, check_config, headroom, pools
from ephmon.commands.reading import load_config
from ephmon.commands.terminal import print_error
from ephmon.daemon import signals
from ephmon.errors import ConfigError, EphmonError, UsageError, quote, shortages_explained
from ephmon.supervision import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ephmon.config.settings import Config

PROC = Path("/proc")

DONE, FAILED, WRONG_USAGE = 0, 1, 2
# 128 + SIGINT, as shells report it.
_INTERRUPTED = 130
_CHECK = "check"
_RUN = "run"

_EPILOG = """\
Addresses are literals, not names; IPv6 with a port is [address]:port. Without --config, ephmon reads
/etc/ephmon/config.yaml if it exists, else it uses the defaults. Exit status: 0 done, 1 failed, 2 wrong usage or
configuration. Exit status of check: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."""


def main(argv: Sequence[str]) -> int:
    """Run a command and return its exit status. An error is one plain sentence on standard error."""
    if _command_name(argv) == _CHECK:
        return check.guard(partial(_run_command, argv))
    try:
        return _run_command(argv)
    except (UsageError, ConfigError) as error:
        return _failed(error, WRONG_USAGE)
    except EphmonError as error:
        return _failed(error, FAILED)
    except BrokenPipeError:
        return FAILED  # the reader has closed the pipe, as in `ephmon pools | head`
    except KeyboardInterrupt:
        return _INTERRUPTED


def _failed(error: EphmonError, status: int) -> int:
    signals.end_by_them()
    print_error(error)
    return status


def _run_command(argv: Sequence[str]) -> int:
    # Signals that came while the modules were loaded are obeyed now; the daemon takes them when it waits.
    if _command_name(argv) != _RUN:
        signals.unblock()
    options, unknown = _parser().parse_known_args(argv)
    if unknown:
        options.refuse(f"unrecognized arguments: {' '.join(map(quote, unknown))}")
    with shortages_explained():
        status: int = options.command(options)
    return status


def _command_name(argv: Sequence[str]) -> str | None:
    """Return the command among the arguments, also if options before it are wrong.

    It is needed before the arguments are parsed, because wrong usage of `check` must be UNKNOWN too.
    """
    rest = iter(argv)
    for argument in rest:
        if not argument.startswith("-"):
            return argument
        if argument == "--config":
            next(rest, None)  # its value
    return None


def _parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(
        prog="ephmon",
        description="Show how many more connections this host can open to each destination before connect() fails.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.set_defaults(proc=PROC)
    parser.add_argument("--version", action="version", version=f"ephmon {__version__}")
    _add_config(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    config = arguments.Parser(add_help=False)
    # With a default here, the option after the command would replace the one before it.
    _add_config(config, default=argparse.SUPPRESS)
    add = partial(_add, commands, [config])
    _add_run_arguments(add(_RUN, _run, "run the daemon in the foreground"))
    _add_pools_arguments(add("pools", pools.run, "poll once and print the pools, fullest first"))
    _add_headroom_arguments(
        add("headroom", headroom.run, "print how many more sockets can get a port of one pool, and why")
    )
    _add_check_arguments(add(_CHECK, check.run, "poll once and answer as a Nagios or Icinga plugin"))
    _add_check_config_arguments(
        add("check-config", check_config.run, "check a configuration file and print what is in force")
    )
    _add_incidents_arguments(
        add("incidents", _list_incidents, "list the incidents that the daemon has written, latest first")
    )
    _add_incident_arguments(add("incident", _show_incident, "print one incident, from this host or another"))
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config",
        type=arguments.file,
        default=default,
        metavar="FILE",
        help="the configuration file, which must exist",
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


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        type=arguments.listen,
        metavar="HOST:PORT",
        help="serve HTTP on this address instead of the configured one",
    )


def _add_pools_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON; without --top, of all pools")
    parser.add_argument(
        "--top", type=arguments.positive, metavar="N", help="print at most N pools (default of the table: pools.top)"
    )
    parser.add_argument(
        "--destination",
        type=arguments.destination,
        metavar="ADDR[:PORT]",
        help="print only the pools toward this destination, with advice on those that reached a threshold",
    )
    parser.add_argument(
        "--owners",
        action="store_true",
        help="print who holds the ports, also the blocked ones: units, containers, users and, if permitted, processes",
    )
    _add_no_probe(parser)


def _add_no_probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-probe", dest="probe", action="store_false", help="do not ask the kernel about ambiguous ports"
    )


def _add_headroom_arguments(parser: argparse.ArgumentParser) -> None:
    _add_destination(parser)
    parser.add_argument(
        "--bind",
        type=arguments.address,
        metavar="SOURCE",
        help="count the ports for bind(SOURCE, 0) instead of for a destination",
    )
    parser.add_argument("--udp", action="store_true", help="count for UDP instead of TCP")
    parser.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        help="ask the kernel about each ambiguous port, and fail if that is not possible; --no-probe: do not ask",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    _add_destination(parser)
    for severity in ("warning", "critical"):
        parser.add_argument(
            f"--{severity}",
            type=arguments.ratio,
            metavar="RATIO",
            help=f"the utilisation ratio from which every pool is {severity.upper()}, instead of the configured ones",
        )
    _add_no_probe(parser)


def _add_destination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", nargs="?", type=arguments.destination_port, metavar="DESTINATION:PORT")
    parser.add_argument(
        "--from",
        dest="source",
        type=arguments.address,
        metavar="SOURCE",
        help="the source address, instead of the one that routing chooses",
    )


def _add_check_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", type=arguments.file, metavar="FILE", help="the file to check, instead of --config"
    )
    parser.add_argument(
        "--pool",
        type=arguments.pool,
        metavar="KIND,SOURCE[,DESTINATION:PORT]",
        help="print the thresholds of this pool, and the override that they come from",
    )


def _add_incidents_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_incident_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=arguments.file, metavar="FILE", help="a file that `ephmon incidents` lists")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _list_incidents(options: argparse.Namespace) -> int:
    # Loaded here, because only these two commands read incidents.
    from ephmon.commands import incidents  # noqa: PLC0415

    return incidents.run(options)


def _show_incident(options: argparse.Namespace) -> int:
    from ephmon.commands import incident  # noqa: PLC0415

    return incident.run(options)


def _run(options: argparse.Namespace) -> int:
    # Loaded here, because only the daemon needs the HTTP server and its libraries.
    from ephmon.daemon.loop import Daemon  # noqa: PLC0415

    def read_config() -> Config:
        config = load_config(options.config)
        return replace(config, listen=options.listen) if options.listen else config

    config = read_config()
    log.set_up(config.log.level, config.log.format)
    threads.log_errors()
    Daemon(read_config, proc=options.proc).run()
    return DONE
