"""Notifies the service manager, if one started ephmon: ready, reloading, stopping, watchdog, status.

Each notification is a datagram of `NAME=value` lines to the socket in NOTIFY_SOCKET (man 3 sd_notify). Without that
variable nothing is sent. Nothing waits: a datagram that the socket does not take at once is lost, or is sent again at
the next wake-up if it must arrive.
"""

from __future__ import annotations

import logging
import math
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.log import Line
from ephmon.outputs.text.wording import exhaustion, failures, gaps, one_line, percent, pool_name, remaining, utc_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ephmon.model.report import Report

SLACK_SECONDS = 5.0
"""Seconds that a tick may take beyond poll.deadline: the probe, owners, conclusions and publishing."""
LONGEST_SENTENCE = 300
LONGEST_STATUS = 900
"""Characters, four bytes each at most: systemd drops a datagram of more than 4096 bytes (NOTIFY_BUFFER_MAX)."""

_MICROSECONDS = 1_000_000
_VARIABLE = "NOTIFY_SOCKET"

_log = logging.getLogger("ephmon.service_manager")


class ServiceManager:
    """The supervisor of this process.

    Args:
        address: The socket to write to, None if there is no service manager.
        watchdog_seconds: After this time without WATCHDOG=1 the process is killed; None without a watchdog.
    """

    def __init__(self, address: str | bytes | None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        # Opened once, so that the watchdog can be fed when descriptors have run out.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        self._watchdog_given = self._watchdog = watchdog_seconds
        self._status: str | None = None
        self._is_ready = self._is_given_time = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> ServiceManager:
        """Return the service manager of the process `pid`; variables with invalid values are ignored."""
        name = environ.get(_VARIABLE, "")
        if name[:1] not in ("/", "@"):  # such as vsock:, which only supervises virtual machines
            return cls(None)
        address = b"\0" + name[1:].encode("utf-8", "surrogateescape") if name[0] == "@" else name
        is_meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        text = environ.get("WATCHDOG_USEC", "")
        has_watchdog = is_meant and text.isascii() and text.isdigit() and int(text) > 0
        return cls(address, int(text) / _MICROSECONDS if has_watchdog else None)

    @property
    def longest_sleep_seconds(self) -> float:
        """How long the loop may sleep: half of what the watchdog waits, as man 3 sd_watchdog_enabled advises."""
        return math.inf if self._watchdog_given is None else self._watchdog_given / 2

    def wake_up(self, deadline_seconds: float) -> None:
        """Give a sign of life before a poll that may last for `deadline_seconds`, and ask for the time that it needs.

        A watchdog that waits for less than twice that time is lengthened, and so is the time to start: a poll within
        its deadline is no reason to kill ephmon.
        """
        needed = 2 * (deadline_seconds + SLACK_SECONDS)
        if not self._is_given_time:
            self._is_given_time = self._send(f"EXTEND_TIMEOUT_USEC={_microseconds(needed)}")
        if self._watchdog_given is None:
            return
        self._send("WATCHDOG=1")
        wanted = max(self._watchdog_given, needed)
        if wanted != self._watchdog and self._send(f"WATCHDOG_USEC={_microseconds(wanted)}"):
            self._watchdog = wanted
            message = "A poll may take poll.deadline, so the watchdog of the service manager waits for that."
            log.write(_log, Line(logging.INFO, message, {"seconds": wanted, "configured": self._watchdog_given}))

    def ready(self, report: Report) -> None:
        """Say that a start or a reload is done, once, and what the report says in short, if that is news."""
        if self._socket is None:
            return
        try:
            status = status_line(report)
        except Exception:  # noqa: BLE001 - a sentence that cannot be made is no reason for a service to be restarted
            status = "A defect of ephmon keeps its status from being shown, please report it."
        if self._is_ready and status == self._status:
            return
        # A reload may end in the status that was there before, and systemd shows none while it lasts.
        message = f"STATUS={status}"
        if self._send(message if self._is_ready else f"READY=1\n{message}"):
            self._is_ready, self._status = True, status

    def reloading(self, now: float) -> None:
        """Say that the configuration is being read again, at `now` on the monotonic clock, in seconds."""
        self._is_ready = False
        self._send(f"RELOADING=1\nMONOTONIC_USEC={_microseconds(now)}")

    def stopping(self) -> None:
        """Say that ephmon is on its way out, and nothing more from then on."""
        self._send("STOPPING=1\nSTATUS=Stopping.")
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> bool:
        """Send a datagram, and tell whether it was taken."""
        if self._socket is None or self._address is None:
            return False
        with suppress(OSError):  # a service manager that is gone or overwhelmed is no reason to fail
            self._socket.sendto(message.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)
            return True
        return False


def _microseconds(seconds: float) -> int:
    return int(seconds * _MICROSECONDS)


def status_line(report: Report) -> str:
    """Return what `systemctl status` shows: what went wrong, the worst pool, and what else is out of the ordinary."""
    return _cut(" ".join(_cut(sentence, LONGEST_SENTENCE) for sentence in _sentences(report)), LONGEST_STATUS)


def _sentences(report: Report) -> Iterator[str]:
    yield from failures(report)
    if report.taken_at is not None:
        if not report.success:
            yield f"The figures are of {utc_time(report.taken_at)}."
        yield from exhaustion(report)
        yield _worst(report)
    if firing := len(report.alerts.firing):
        yield "1 alert fires." if firing == 1 else f"{firing} alerts fire."
    if report.pace.limited_by is not None:
        usual, key = report.interval_seconds, report.pace.limited_by
        yield f"Polls come every {report.pace.full:.1f} s instead of {usual:g} s, because {key} allows no more."
    yield from gaps(report)


def _worst(report: Report) -> str:
    if not report.listed:
        return "No pool holds enough ports to be listed."
    pool = report.listed[0].pool
    return f"Worst pool: {pool_name(pool.key)}, {percent(pool.utilisation)} % used, {remaining(pool)} ports remain."


def _cut(text: str, longest: int) -> str:
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
