"""The reader of failed connect() calls: reads them from a tracing instance as they happen, and returns them in batches.

It has a thread of its own, because the name and namespace of a caller can be read only while it lives. It keeps to a
share of a processor, because any local user can make such calls at will: 850,000 in a second from one thread. The
kernel overwrites and counts what is not read in time, so that read and lost events add up to all events.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, Self

from ephmon.errors import KernelError, Reason
from ephmon.facts.addresses import unmapped
from ephmon.facts.failed_calls import Destination, ExhaustionBatch, ExhaustionEvent
from ephmon.facts.namespaces import OWN_NETNS, Netns
from ephmon.kernel.loopback import is_dummy
from ephmon.kernel.proc.callers import Caller, Callers
from ephmon.kernel.trace.ring_buffer import parse_page
from ephmon.kernel.trace.tracefs import PREPARED, TRACING, open_instance
from ephmon.supervision import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from ephmon.kernel.trace.ring_buffer import Call
    from ephmon.kernel.trace.tracefs import Instance

CPU_SHARE = 0.05
"""Reading stops for the rest of a second when it has used so much of it."""
PERIOD_SECONDS = 1.0
GATHER_SECONDS = 0.005
"""The pause after each reading. It limits how often the thread wakes; most callers live longer than that."""
KNOWN_SECONDS = 1.0
"""What was found out about a thread is kept that long, because reading /proc costs more than all else here."""
LONGEST_WAIT_SECONDS = 1.0
"""Buffers are read this often even if the kernel reports nothing."""
MOST_EVENTS = 100
"""A batch contains at most so many single events of our own namespace, and as many of others."""
MOST_DESTINATIONS = 500
"""A batch counts at most so many destinations for each label."""
MOST_DESTINATIONS_OF_USER = 100
"""A batch has the latest call of one user toward at most so many destinations."""
MOST_NAMESPACES = 64
"""A batch tells at most so many namespaces apart."""
MOST_SKIPPED_PAGES = 4096
"""A buffer that is found is emptied first; one that is filled faster than that is left as it is."""

_TO_MILLISECONDS, _FROM_NANOSECONDS = 1000, 1e-9
_CLOCK_READINGS = 5
"""The shortest of so many readings of two clocks counts, because this thread may be interrupted between them."""
_CLOCK_STEP = 1e-6
"""The clock of an instance is told in whole microseconds."""


class Budget:
    """A share of a processor in each period of a second, for the thread that asks."""

    def __init__(
        self,
        share: float = CPU_SHARE,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._began = clock()
        self._spent_before = cpu_clock()

    def has_left(self) -> bool:
        """Tell whether anything is left of this period's share."""
        now = self._clock()
        if now - self._began >= PERIOD_SECONDS:
            self._began, self._spent_before = now, self._cpu_clock()
        return self._cpu_clock() - self._spent_before < self._share * PERIOD_SECONDS

    def pause(self) -> float:
        """Return how long to wait before more is read, in seconds."""
        if self.has_left():
            return GATHER_SECONDS
        return max(GATHER_SECONDS, self._began + PERIOD_SECONDS - self._clock())


class _Calls(NamedTuple):
    """Calls of one thread toward one destination that one page told of."""

    call: Call
    caller: Caller
    times: tuple[float, ...]
    """Monotonic seconds."""


class _BatchBuilder:
    """What was read since the last batch."""

    def __init__(self) -> None:
        self._totals: Counter[Netns] = Counter()
        self._destinations: dict[str, Counter[Destination]] = {}
        self._of_user: Counter[int | None] = Counter()
        self._latest: dict[tuple[bytes, bytes, int, int | None], _Calls] = {}
        self._last = {is_own: deque[_Calls](maxlen=MOST_EVENTS) for is_own in (True, False)}

    def add(self, calls: _Calls) -> None:
        netns, number = calls.caller.netns, len(calls.times)
        is_known = netns in self._totals or len(self._totals) < MOST_NAMESPACES
        self._totals[netns if is_known else Netns(netns.label)] += number
        destination = Destination(netns.label, unmapped(calls.call.destination), calls.call.destination_port)
        counts = self._destinations.setdefault(netns.label, Counter())
        if destination in counts or len(counts) < MOST_DESTINATIONS:
            counts[destination] += number
        self._last[netns.label == OWN_NETNS].append(calls._replace(times=calls.times[-MOST_EVENTS:]))
        # A destination or a user that fails often must not hide another that fails now and then.
        uid = calls.caller.uid
        key = (calls.call.source, calls.call.destination, calls.call.destination_port, uid)
        if netns.label == OWN_NETNS and (key in self._latest or self._has_room_for(uid)):
            self._of_user[uid] += key not in self._latest
            self._latest[key] = calls._replace(times=calls.times[-1:])

    def _has_room_for(self, uid: int | None) -> bool:
        return len(self._latest) < MOST_DESTINATIONS and self._of_user[uid] < MOST_DESTINATIONS_OF_USER

    def batch(self, lost: int, epoch: float) -> ExhaustionBatch:
        """Return it as a batch. `epoch` is when the monotonic clock was 0, in seconds since the epoch."""
        events = [event for last in self._last.values() for event in _last_events(last, epoch)]
        return ExhaustionBatch(
            totals=dict(self._totals),
            destinations={key: number for counts in self._destinations.values() for key, number in counts.items()},
            events=tuple(sorted(events, key=lambda event: event.at_monotonic)),
            latest=tuple(_last_events(self._latest.values(), epoch, MOST_DESTINATIONS)),
            lost=lost,
        )


class ExhaustionCollector:
    """Counts the events of an instance. It has no thread: one thread calls `drain`, another may call `take`.

    Events from before it was made are not counted.
    """

    def __init__(self, instance: Instance, callers: Callers, wall_clock: Callable[[], float] = time.time) -> None:
        self._instance = instance
        self._callers = callers
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._builder = _BatchBuilder()
        self._known: dict[int, Caller] = {}
        self._known_since = time.monotonic()
        self._clock_ahead = _clock_ahead_of(instance)
        self._skip_what_is_there()
        self._lost = instance.lost()

    def drain(self, may_go_on: Callable[[], bool]) -> None:
        """Read until nothing is left, a page of each processor in turn, or until told to stop in between.

        Raises:
            KernelError: A buffer cannot be read.
        """
        buffers = list(self._instance.buffers)
        while buffers:
            for buffer in tuple(buffers):
                if not may_go_on():
                    return
                page = self._instance.read_page(buffer)
                if page:
                    self._count(parse_page(page, self._instance.pages, self._instance.records))
                else:
                    buffers.remove(buffer)

    def take(self) -> ExhaustionBatch:
        """Return what was read since the last call, and what was lost since.

        Raises:
            KernelError: The recording was switched off, or what was lost cannot be read.
        """
        self._instance.require_on()
        lost = self._instance.lost()
        # Less than before: somebody emptied the buffer, which sets its counters back.
        lost_since = lost - self._lost if lost >= self._lost else lost
        with self._lock:
            builder, self._builder, self._lost = self._builder, _BatchBuilder(), lost
        return builder.batch(lost_since, self._wall_clock() - time.monotonic())

    def _count(self, calls: Mapping[Call, Iterable[int]]) -> None:
        for call, nanoseconds in calls.items():
            times = tuple(at * _FROM_NANOSECONDS + self._clock_ahead for at in nanoseconds)
            caller = self._caller(call.thread_id, times[0])
            # A probe asks for failures: ours, or that of `ephmon headroom`.
            if caller.pid != self._callers.own_pid and not is_dummy(unmapped(call.destination)):
                with self._lock:
                    self._builder.add(_Calls(call, caller, times))

    def _caller(self, thread_id: int, at: float) -> Caller:
        """Return who a thread is, as it was found in the last second: numbers do not go round in that time."""
        now = time.monotonic()
        if now - self._known_since >= KNOWN_SECONDS:
            self._known.clear()
            self._known_since = now
        caller = self._known.get(thread_id)
        if caller is None:
            caller = self._known[thread_id] = self._callers.find(thread_id, at)
        return caller

    def _skip_what_is_there(self) -> None:
        for buffer in self._instance.buffers:
            for _ in range(MOST_SKIPPED_PAGES):
                if not self._instance.read_page(buffer):
                    break


class ExhaustionReader:
    """A thread that drains an instance while the share of a processor lasts. A context manager; close it in the end.

    Raises:
        KernelError: The instance cannot be read; it is closed then.
    """

    def __init__(self, instance: Instance, callers: Callers, wall_clock: Callable[[], float] = time.time) -> None:
        with ExitStack() as held:
            held.callback(instance.close)
            self._collector = ExhaustionCollector(instance, callers, wall_clock)
            self._buffers = instance.buffers
            self._error: KernelError | None = None
            self._thread = threading.Thread(target=self._run, name="exhaustions", daemon=True)
            try:
                self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                held.callback(os.close, self._stop)
                threads.start(self._thread)
            except (OSError, threads.ThreadError) as error:  # no descriptor or no thread is to be had
                raise KernelError(
                    f"ephmon cannot read failed connect() calls now: {str(error).rstrip('.')}.", reason=Reason.TRACEFS
                ) from error
            self._held = held.pop_all()

    @classmethod
    def open(
        cls,
        proc: Path,
        *,
        tracing: Path = TRACING,
        prepared: Path = PREPARED,
        wall_clock: Callable[[], float] = time.time,
    ) -> Self:
        """Return a reader of the instance prepared for ephmon, or else of a new one.

        Args:
            proc: Where procfs is mounted.
            tracing: Where tracefs is mounted.
            prepared: The prepared instance, if there is one.
            wall_clock: Seconds since the epoch.

        Raises:
            KernelError: It cannot be had; says what to grant.
        """
        callers = Callers(proc)
        return cls(open_instance(tracing, prepared), callers, wall_clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> ExhaustionBatch:
        """Return what happened since the last call.

        Raises:
            KernelError: Nothing is read any more, and why; close the reader and open another.
        """
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            raise KernelError("The thread that reads failed connect() calls has ended.", reason=Reason.TRACEFS)
        return self._collector.take()

    def close(self) -> None:
        """Stop the thread and close the instance. Closing twice does nothing.

        Raises:
            KernelError: The instance could not be removed.
        """
        if self._thread.is_alive():
            os.eventfd_write(self._stop, 1)
            self._thread.join()
        self._held.close()

    def _run(self) -> None:
        try:
            self._read()
        except KernelError as error:
            self._error = error

    def _read(self) -> None:
        budget = Budget()
        events, stop = select.poll(), select.poll()
        stop.register(self._stop, select.POLLIN)
        for descriptor in (*self._buffers, self._stop):
            events.register(descriptor, select.POLLIN)
        while True:
            for descriptor, event in events.poll(LONGEST_WAIT_SECONDS * _TO_MILLISECONDS):
                if event & ~select.POLLIN:  # a processor that is not there: it is looked at when the wait ends
                    events.unregister(descriptor)
            if stop.poll(0):
                return
            self._collector.drain(budget.has_left)
            if stop.poll(budget.pause() * _TO_MILLISECONDS):
                return


def _clock_ahead_of(instance: Instance) -> float:
    """Return how far our CLOCK_MONOTONIC is ahead of the clock of the events, in seconds: 0 but in a time namespace.

    The kernel stamps events with the clock of the host (ktime_get_mono_fast_ns()), whereas all that this process is
    told, also by /proc, has the offsets of its own time namespace (man 7 time_namespaces).
    """
    readings = [(time.monotonic(), instance.now(), time.monotonic()) for _ in range(_CLOCK_READINGS)]
    before, theirs, after = min(readings, key=lambda reading: reading[2] - reading[0])
    if before - _CLOCK_STEP <= theirs <= after:
        return 0.0
    return (before + after) / 2 - theirs


def _last_events(last: Iterable[_Calls], epoch: float, most: int = MOST_EVENTS) -> list[ExhaustionEvent]:
    """Return the last of the events, at most so many, oldest first."""
    every = sorted(((at, calls) for calls in last for at in calls.times), key=itemgetter(0))
    return [_event(calls, at, epoch) for at, calls in every[-most:]]


def _event(calls: _Calls, at: float, epoch: float) -> ExhaustionEvent:
    call, caller = calls.call, calls.caller
    return ExhaustionEvent(
        at=epoch + at,
        at_monotonic=at,
        netns=caller.netns,
        source=unmapped(call.source),
        destination=unmapped(call.destination),
        destination_port=call.destination_port,
        family=call.family,
        thread_id=call.thread_id,
        pid=caller.pid,
        command=caller.command,
        uid=caller.uid,
        cgroup=caller.cgroup,
    )
