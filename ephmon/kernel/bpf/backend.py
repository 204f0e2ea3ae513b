"""The bind table as a backend: loaded once, held against inet_diag now and then, ended where it fails for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ephmon.errors import KernelError, Reason
from ephmon.facts.snapshot import BpfStatus
from ephmon.facts.sockets import Backend
from ephmon.kernel.bpf.comparison import disagreement
from ephmon.kernel.bpf.load import BpfUnavailableError
from ephmon.kernel.bpf.reader import MOST_POOLS, BindTableReader
from ephmon.supervision.compartment import Compartment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ephmon.facts.bind_table import BindTable, NamespaceBinds
    from ephmon.facts.sockets import TcpSockets
    from ephmon.kernel.deadline import Deadline

SECONDS_BETWEEN_COMPARISONS = 3600.0
COMPARISONS = 3
"""So many in a row have to fail before inet_diag is believed: each is of sockets that come and go."""


_Walk = tuple["NamespaceBinds", tuple["NamespaceBinds", ...]]
"""The own namespace, and the others."""


class Walker(Protocol):
    """What walks the table: a `BindTableReader`."""

    def read(self, deadline: Deadline, /, *, own_only: bool) -> BindTable:
        """Walk once; with `own_only`, count the sockets of the own namespace alone."""

    def close(self) -> None:
        """Give all back to the kernel."""


class BpfBackend:
    """Reads the bind table, of the own namespace or of all.

    What is wrong for good, as a missing privilege, ends it until `retry`. A defect in reading switches it off for a
    while, and one in what is made of the reading ends it. What else goes wrong fails one reading.

    Args:
        proc: Where procfs is mounted.
        clock: The monotonic clock, seconds.
        compares: Whether to hold walks against inet_diag.
        open_reader: Loads the program.
    """

    def __init__(
        self,
        *,
        proc: Path,
        clock: Callable[[], float],
        compares: bool = True,
        open_reader: Callable[[Path], Walker] = lambda proc: BindTableReader(proc=proc),
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._compares = compares
        self._open_reader = open_reader
        self._compartment = Compartment(Backend.BPF, clock)
        self._reader: Walker | None = None
        # Sentences and no errors, which would keep alive all that each reading had, and grow each time they are raised.
        self._refusal: str | None = None
        self._failure: str | None = None
        self._compared_at: float | None = None
        self._disagreements = 0

    @property
    def status(self) -> BpfStatus:
        """How it is, after the latest reading."""
        return BpfStatus(refusal=self._refusal or self._failure, disagreements=self._disagreements)

    def retry(self) -> None:
        """Try again at the next reading what ended it."""
        self._refusal = None
        self._compartment.retry_now()

    def end(self, refusal: str) -> None:
        """Take the program out of the kernel, and read no more until `retry`.

        Args:
            refusal: Why, as one sentence.
        """
        self._refusal = refusal
        self._compared_at = None
        self.close()

    def close(self) -> None:
        """Take the program out of the kernel."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def read(self, deadline: Deadline, dump: Callable[[], TcpSockets | None], *, own_only: bool = True) -> _Walk:
        """Walk the table, and where it is time, hold the own namespace against inet_diag.

        Args:
            deadline: When to give up.
            dump: Reads the TCP sockets of the own namespace by inet_diag; None if that is not available.
            own_only: Whether only the own namespace is read.

        Returns:
            The own namespace, and the others.

        Raises:
            KernelError: The table could not be read, or cannot be trusted.
        """
        result = self._compartment.run(lambda: self._read(deadline, dump, own_only=own_only), self._after_defect)
        self._failure = str(result) if isinstance(result, KernelError) else None
        if isinstance(result, KernelError):
            raise result
        return result

    def _read(
        self, deadline: Deadline, dump: Callable[[], TcpSockets | None], *, own_only: bool
    ) -> _Walk | KernelError:
        """Return the error instead of raising it: it is no defect."""
        try:
            walk = self._walk(deadline, own_only=own_only)
            if self._is_to_be_compared():
                walk = self._compare(walk, deadline, dump, own_only=own_only)
        except KernelError as error:
            if isinstance(error, BpfUnavailableError) or error.reason == Reason.MALFORMED:
                self.end(str(error))
            return error
        return walk

    def _after_defect(self, reason: str) -> _Walk | KernelError:
        self.close()
        return KernelError(reason, reason=Reason.DEFECT)

    def _is_to_be_compared(self) -> bool:
        is_due = self._compared_at is None or self._clock() - self._compared_at >= SECONDS_BETWEEN_COMPARISONS
        return self._compares and is_due

    def _walk(self, deadline: Deadline, *, own_only: bool) -> _Walk:
        if self._refusal is not None:
            raise BpfUnavailableError(self._refusal)
        if self._reader is None:
            self._reader = self._open_reader(self._proc)
        table = self._reader.read(deadline, own_only=own_only)
        own = table.own
        if table.losses.pools or own is None:
            raise KernelError(
                f"There are more pools than BPF has room for ({MOST_POOLS:,}), so sockets are read in another way.",
                reason=Reason.MEMORY,
            )
        return own, tuple(one for one in table.namespaces if one is not own)

    def _compare(
        self, walk: _Walk, deadline: Deadline, dump: Callable[[], TcpSockets | None], *, own_only: bool
    ) -> _Walk:
        """Return the latest walk if it agrees with inet_diag."""
        for _ in range(COMPARISONS):
            shown = dump()
            before, walk = walk, self._walk(deadline, own_only=own_only)
            difference = None if shown is None else disagreement(before[0], shown, walk[0])
            if difference is None:
                self._compared_at = self._clock()
                return walk
        self._disagreements += 1
        raise BpfUnavailableError(f"BPF and inet_diag disagree: {difference}.")
