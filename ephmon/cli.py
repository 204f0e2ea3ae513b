"""The commands. Each reads what it needs, prints an answer and returns an exit status.

0 is done, 1 is failed, 2 is wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ephmon import __version__, signals
from ephmon.config import LISTEN, Config, describe, load, pending
from ephmon.endpoint import Address, parse_endpoint, parse_lone_address
from ephmon.errors import ConfigError, EphmonError, KernelError, UsageError, shown
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.own_address import require_own
from ephmon.kernel.probe import probe, require_probe
from ephmon.kernel.route import group_of, source_toward
from ephmon.kernel.source import SocketSource
from ephmon.model.pools import PoolKind
from ephmon.model.report import ReloadStatus, initial_report, report_of
from ephmon.model.survey import every_pool, survey
from ephmon.model.tcp_connect import Tuple
from ephmon.outputs import api, headroom, log, table
from ephmon.outputs.text import endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from ephmon.config import ListenAddress
    from ephmon.model.pools import Pool
    from ephmon.model.snapshot import Snapshot
    from ephmon.model.survey import NamespaceSurvey
    from ephmon.model.tcp_ports import TcpPorts

T = TypeVar("T")

DEFAULT_CONFIG = Path("/etc/ephmon/config.yaml")
PROC = Path("/proc")

IPV6 = 6

DONE, FAILED, WRONG_USAGE = 0, 1, 2
_INTERRUPTED = 130

_EPILOG = """\
Addresses are literals; IPv6 is written [address]:port. Without --config the file /etc/ephmon/config.yaml is read if it
exists, else the built-in defaults hold. Exit status: 0 done, 1 it failed, 2 wrong usage or configuration."""


def entry_point() -> NoReturn:
    """Run the command line of this process and exit."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status. Errors are one plain sentence on standard error."""
    try:
        options, unknown = _parser().parse_known_args(arguments)
        if unknown:
            options.refuse(f"unrecognized arguments: {' '.join(map(shown, unknown))}")
        status: int = options.command(options)
    except (UsageError, ConfigError) as error:
        return _complain(error, WRONG_USAGE)
    except EphmonError as error:
        return _complain(error, FAILED)
    except BrokenPipeError:
        return FAILED  # the reader of our output has had enough (`ephmon pools | head`)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


class _OutputError(EphmonError):
    """The answer cannot be printed."""


def _print(text: str) -> None:
    """Write to standard output, what its encoding lacks as an escape.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        _OutputError: It is closed, or what is behind it is full.
    """
    if sys.stdout is None:
        raise _OutputError("Standard output is closed, so the answer cannot be printed; redirect it to /dev/null.")
    encoding = sys.stdout.encoding
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise _OutputError(f"The answer cannot be written to standard output: {error.strerror}.") from error


def _complain(error: Exception, status: int) -> int:
    if sys.stderr is None:
        return status
    try:
        for line in str(error).splitlines():
            sys.stderr.write(f"ephmon: {line}\n")
    except OSError:
        _discard(sys.stderr)  # the status has to say it all
    return status


def _discard(stream: TextIO) -> None:
    """Send what is left in the buffer nowhere: Python would write it once more at exit, fail and change the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser that prints and fails as the commands do: its errors are one sentence, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` says what can be written.")

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 - argparse's signature
        _print(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ephmon",
        description="How many more connections this host can open, for every destination, before connect() fails.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ephmon {__version__}")
    _add_config(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    config = _Parser(add_help=False)
    # Without it, what stands before the command is to hold.
    _add_config(config, default=argparse.SUPPRESS)

    run = _add(commands, "run", _run, "run the daemon in the foreground", [config])
    run.add_argument("--listen", type=_listen, metavar="HOST:PORT", help="serve HTTP here instead of at `listen`")

    pools = _add(commands, "pools", _pools, "poll once and print the pools, the fullest first", [config])
    pools.add_argument("--json", action="store_true", help="print JSON, all pools unless --top says otherwise")
    pools.add_argument("--top", type=_positive, metavar="N", help="print at most N pools (table: pools.top)")
    pools.add_argument("--destination", type=_destination, metavar="ADDR[:PORT]", help="print only the pools toward it")

    room = _add(commands, "headroom", _headroom, "tell how many more sockets one pool has ports for, and why", [config])
    room.add_argument("destination", nargs="?", type=_destination_port, metavar="DESTINATION:PORT")
    room.add_argument("--from", dest="source", type=_address, metavar="SOURCE", help="instead of what routing chooses")
    room.add_argument("--bind", type=_address, metavar="SOURCE", help="what bind(SOURCE, 0) has left")
    room.add_argument("--udp", action="store_true", help="UDP instead of TCP")
    room.add_argument(
        "--probe", action="store_true", help="ask the kernel about each port in doubt (CAP_NET_ADMIN, Linux 6.3)"
    )
    room.add_argument("--json", action="store_true", help="print JSON")

    check = _add(
        commands, "check-config", _check_config, "check a configuration file and print what is in force", [config]
    )
    check.add_argument("file", nargs="?", type=_file, metavar="FILE", help="the file to check instead of --config")
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config", type=_file, default=default, metavar="FILE", help="the configuration file; it must exist"
    )


def _add(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    parents: Sequence[_Parser],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary.capitalize()}.", parents=parents, allow_abbrev=False
    )
    parser.set_defaults(command=command, refuse=parser.error)
    return parser


# --- commands -----------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    signals.block()
    # Only the daemon needs the HTTP side and what it drags in.
    from ephmon.daemon import Daemon  # noqa: PLC0415

    def read_config() -> Config:
        config = _configuration(options.config)
        return replace(config, listen=options.listen) if options.listen else config

    config = read_config()
    log.set_up(config.log.level, config.log.format)
    Daemon(read_config, proc=PROC).run()
    return DONE


def _pools(options: argparse.Namespace) -> int:
    config = _configuration(options.config)
    snapshot = _read(config)
    surveys = survey(snapshot, likely_binder_ports=config.listing.min_in_use)
    before = initial_report(config.rules, ReloadStatus(successful=True, succeeded_at=0.0))
    report = report_of(surveys, snapshot, before, time.monotonic())
    pools = every_pool(surveys, config.listing.ignore_destinations)
    toward = None
    if options.destination:
        address, port = options.destination
        toward = endpoint(address, port)
        pools = [pool for pool in pools if _is_toward(pool, address, port)]
    if options.json:
        _print(api.encode(api.pools_document(report, pools[: options.top])).decode())
        return DONE
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    top = pools[: options.top or config.listing.top]
    width = shutil.get_terminal_size().columns if on_terminal else None
    colour = on_terminal and not os.environ.get("NO_COLOR")
    selection = table.Selection(matching=len(pools), toward=toward)
    _print(table.render(report, top, colour=colour, width=width, selection=selection))
    return DONE


def _is_toward(pool: Pool, address: str, port: int | None) -> bool:
    return pool.key.destination == address and port in (None, pool.key.destination_port)


def _headroom(options: argparse.Namespace) -> int:
    config = _configuration(options.config)
    kind, source = _asked_pool(options)
    snapshot = _read(config)
    (one,) = survey(snapshot)
    method: str = one.namespace.backends.get(kind.protocol, "")
    failure = None
    if options.probe and one.ports:
        unprobed = one
        one, failure = _probed(snapshot, unprobed, one.ports, config.poll.deadline_seconds)
        method = method if one is unprobed else "probe"
    pools = one.pools_of(kind)
    if pools is None:
        raise KernelError(one.namespace.missing[kind.protocol], reason="unavailable")
    pool = pools.pool(_own_key(kind, source, options.destination))
    if options.json:
        _print(api.encode({"schema": api.SCHEMA, "method": method, **api.pool_object(pool)}).decode())
    else:
        _print(headroom.render(pool))
    return _complain(failure, FAILED) if failure else DONE


def _probed(
    snapshot: Snapshot, unprobed: NamespaceSurvey, ports: TcpPorts, seconds: float
) -> tuple[NamespaceSurvey, KernelError | None]:
    """Return the survey with what the probe found, or the unprobed one, and what kept it from all answers."""
    asked = ports.not_known_to_be_blocked() if ports.blind_to else ports.unanswered()
    try:
        require_probe()
        answers = probe(asked, Deadline(seconds, time.monotonic))
    except KernelError as error:
        return unprobed, error
    (probed,) = survey(snapshot, answers={unprobed.namespace.inode: answers})
    if len(answers) == len(asked):
        return probed, None
    what = f"The probe got to {len(answers)} of {len(asked)} ports before poll.deadline passed"
    return probed, KernelError(f"{what}; the bounds allow for the rest, a longer deadline settles it.")


def _own_key(kind: PoolKind, source: Address, destination: tuple[Address, int] | None) -> Tuple | bytes:
    if kind != PoolKind.TCP_CONNECT or destination is None:
        return source.packed
    address, port = destination
    return Tuple(source.packed, address.packed, port)


def _asked_pool(options: argparse.Namespace) -> tuple[PoolKind, Address]:
    """Return the kind of pool that the arguments ask for, and its source."""
    _check_question(options)
    if options.bind:
        _check_source("--bind", options.bind)
        return (PoolKind.UDP_BIND if options.udp else PoolKind.TCP_BIND), options.bind
    destination, port = options.destination
    if options.source:
        _check_source("--from", options.source)
    if options.udp and options.source:
        return PoolKind.UDP_BIND, options.source
    if options.udp:
        return PoolKind.UDP_CONNECT, ip_address(bytes(len(destination.packed)))
    if group := group_of(destination):
        raise UsageError(f"{destination} is a {group} address: connect() of a TCP socket fails there with ENETUNREACH.")
    return PoolKind.TCP_CONNECT, options.source or source_toward(destination, port)


def _check_question(options: argparse.Namespace) -> None:
    """Raise UsageError if the arguments do not go together."""
    if (options.destination is None) == (options.bind is None):
        raise UsageError("headroom takes either DESTINATION:PORT or --bind SOURCE.")
    if options.probe and (options.udp or options.bind):
        raise UsageError("--probe is about TCP connect(): the other pools have no port in doubt.")
    if options.bind:
        if options.source:
            raise UsageError("--from goes with a destination; --bind names the source itself.")
        return
    destination, _ = options.destination
    if options.source and options.source.version != destination.version:
        raise UsageError(f"--from {options.source} and {destination} are of different families.")
    if options.source and options.source.is_unspecified:
        raise UsageError(f"--from {options.source} is every address; name one, or leave it out.")


def _check_source(option: str, source: Address) -> None:
    """Raise UsageError for a source that no host can have, KernelError for one that this host does not have."""
    if group := group_of(source):
        raise UsageError(f"{option} {source} is a {group} address, which nothing is sent from; name one of this host.")
    require_own(source)


def _check_config(options: argparse.Namespace) -> int:
    if options.file and options.config:
        raise UsageError("check-config takes one file: give FILE or --config, not both.")
    config = _configuration(options.file or options.config)
    _print("".join([describe(config), *(f"# {sentence}\n" for sentence in pending(config.set_keys))]))
    return DONE


def _read(config: Config) -> Snapshot:
    source = SocketSource(proc=PROC, clock=time.monotonic, wall_clock=time.time, mode=config.poll.backend)
    return source.read(config.poll.deadline_seconds)


def _configuration(path: Path | None) -> Config:
    """Return the configuration of the file given, else of the default file if it is there, else the defaults."""
    if path is not None:
        return load(path)
    return load(DEFAULT_CONFIG) if os.path.lexists(DEFAULT_CONFIG) else Config()


# --- arguments ----------------------------------------------------------------------------------------------------


def _listen(text: str) -> ListenAddress:
    return _argument(LISTEN.parse, text)


def _destination(text: str) -> tuple[str, int | None]:
    address, port = _argument(parse_endpoint, text)
    return str(address), port


def _destination_port(text: str) -> tuple[Address, int | None]:
    address, port = _argument(lambda given: parse_endpoint(given, port_required=True), text)
    if address.is_unspecified:
        raise argparse.ArgumentTypeError(f"connect() takes {address} for loopback; write 127.0.0.1 or ::1")
    if address.version == IPV6 and address.is_link_local:
        raise argparse.ArgumentTypeError(f"connect() to {address} needs a device too, and devices have no pools")
    return address, port


def _address(text: str) -> Address:
    return _argument(parse_lone_address, text)


def _file(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of the file is empty")
    return Path(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _argument(parse: Callable[[str], T], text: str) -> T:
    """Parse an argument; argparse shows the sentence of an ArgumentTypeError, but not that of a ValueError."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
