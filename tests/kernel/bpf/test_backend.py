"""The bind table as a backend: what ends it, what fails one reading, and when it is held against inet_diag."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import KernelError, Reason
from ephmon.facts.bind_counts import ConnectCounts, PoolKey
from ephmon.facts.bind_table import BindTable, Losses
from ephmon.facts.sockets import TcpState
from ephmon.kernel.bpf.backend import COMPARISONS, SECONDS_BETWEEN_COMPARISONS, BpfBackend
from ephmon.kernel.bpf.comparison import disagreement
from ephmon.kernel.bpf.load import BpfUnavailableError
from ephmon.kernel.deadline import Deadline
from tests.model.facts import connected, listening, make_tcp
from tests.model.pools.bind_table.tables import LOW, make_binds

if TYPE_CHECKING:
    from ephmon.facts.bind_table import NamespaceBinds
    from ephmon.facts.sockets import TcpSockets

HERE, THERE, PORT = "10.0.0.1", "10.0.0.9", 443
KEY = PoolKey(ip_address(HERE).packed, ip_address(THERE).packed, PORT)
NEVER = Deadline(1e9, lambda: 0.0)


def walked(number: int) -> NamespaceBinds:
    counts = ConnectCounts(held=number, states={TcpState.ESTABLISHED.value: number})
    return make_binds({KEY: counts} if number else None)


def shown(number: int) -> TcpSockets:
    return make_tcp(connected(HERE, range(LOW, LOW + number), THERE, PORT))


class Reader:
    """Stands for what reads the table: each reading returns the next result, and the last one from there on."""

    def __init__(self, *results: BindTable | KernelError) -> None:
        self._results = itertools.chain(results, itertools.repeat(results[-1]))
        self.is_closed = False

    def read(self, _deadline: Deadline, /, *, own_only: bool) -> BindTable:
        assert own_only
        result = next(self._results)
        if isinstance(result, KernelError):
            raise result
        return result

    def close(self) -> None:
        self.is_closed = True


def table(number: int, **losses: int) -> BindTable:
    return BindTable(own_inode=1, namespaces=(walked(number),), losses=Losses(**losses), buckets=0)


class Stage:
    """A backend, its clock, how often the program was loaded, and how often inet_diag was asked."""

    def __init__(self, reader: Reader | BpfUnavailableError, dump: TcpSockets | None = None) -> None:
        self.now, self.loads, self.dumps = 0.0, 0, 0
        self._reader, self._shown = reader, dump
        self.backend = BpfBackend(proc=Path("/proc"), clock=lambda: self.now, open_reader=self._open)

    def _open(self, _proc: Path) -> Reader:
        self.loads += 1
        if isinstance(self._reader, BpfUnavailableError):
            raise self._reader
        return self._reader

    def read(self) -> NamespaceBinds:
        own, others = self.backend.read(NEVER, self._dump)
        assert others == ()
        return own

    def _dump(self) -> TcpSockets | None:
        self.dumps += 1
        return self._shown


def test_what_cannot_be_loaded_is_not_tried_again_until_somebody_asks() -> None:
    stage = Stage(BpfUnavailableError("It takes a capability."))
    for _ in range(3):
        with pytest.raises(BpfUnavailableError, match="It takes a capability"):
            stage.read()
    loads = stage.loads
    stage.backend.retry()
    with pytest.raises(BpfUnavailableError):
        stage.read()

    assert (loads, stage.loads) == (1, 2)
    assert stage.backend.status.refusal == "It takes a capability."


def test_what_is_refused_again_and_again_is_not_remembered_longer_and_longer() -> None:
    """An error that is raised once more grows by the frames on its way, and keeps alive what they had."""
    stage = Stage(BpfUnavailableError("It takes a capability."))
    depths = []
    for _ in range(3):
        with pytest.raises(BpfUnavailableError) as raised:
            stage.read()
        depths.append(len(raised.traceback))

    assert depths[2] <= depths[1]


def test_walks_are_held_against_inet_diag_at_first_and_then_once_an_hour() -> None:
    stage = Stage(Reader(table(50)), shown(50))
    dumps = []
    for stage.now in (0.0, 5.0, SECONDS_BETWEEN_COMPARISONS - 1, SECONDS_BETWEEN_COMPARISONS, 3700.0):
        stage.read()
        dumps.append(stage.dumps)

    assert dumps == [1, 1, 1, 2, 2]
    assert stage.backend.status.refusal is None


def test_a_disagreement_that_stays_ends_it_and_counts() -> None:
    reader = Reader(table(90))
    stage = Stage(reader, make_tcp())
    with pytest.raises(BpfUnavailableError, match=r"shows 0 sockets from 10\.0\.0\.1 to 10\.0\.0\.9:443, and BPF 90"):
        stage.read()

    assert (stage.dumps, reader.is_closed) == (COMPARISONS, True)
    assert stage.backend.status.disagreements == 1
    assert "disagree" in str(stage.backend.status.refusal)


def test_a_disagreement_that_is_gone_when_looked_at_again_is_none() -> None:
    stage = Stage(Reader(table(90), table(90), table(0)), make_tcp())
    stage.read()

    assert (stage.dumps, stage.backend.status.disagreements) == (2, 0)


def test_without_inet_diag_nobody_disagrees() -> None:
    stage = Stage(Reader(table(90)), None)

    assert stage.read().pool_table.column("held")[0] == 90


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (KernelError("It cannot be trusted.", reason=Reason.MALFORMED), True),
        (BpfUnavailableError("The layout is not known."), True),
        (KernelError("There is no memory.", reason=Reason.MEMORY), False),
    ],
)
def test_what_is_wrong_for_good_ends_it_and_all_else_fails_one_reading(error: KernelError, *, is_final: bool) -> None:
    reader = Reader(error, table(10))
    stage = Stage(reader, shown(10))
    with pytest.raises(KernelError) as raised:
        stage.read()
    told = stage.backend.status.refusal
    if is_final:
        with pytest.raises(KernelError):
            stage.read()
    else:
        stage.read()

    assert (raised.value, told, reader.is_closed) == (error, str(error), is_final)
    assert (stage.backend.status.refusal is None) is not is_final


def test_a_defect_switches_it_off_for_a_while_and_nothing_else() -> None:
    class Broken(Reader):
        def read(self, _deadline: Deadline, /, *, own_only: bool) -> BindTable:
            assert own_only
            raise IndexError

    reader = Broken(table(10))
    stage = Stage(reader, shown(10))
    loads = []
    for stage.now in (0.0, 5.0, 60.0):
        with pytest.raises(KernelError, match="IndexError") as raised:
            stage.read()
        loads.append(stage.loads)

    assert raised.value.reason is Reason.DEFECT
    assert (loads, reader.is_closed) == ([1, 1, 2], True)
    assert "IndexError" in str(stage.backend.status.refusal)


def test_more_pools_than_there_is_room_for_fail_the_reading_and_not_the_next() -> None:
    stage = Stage(Reader(table(10, pools=1), table(10)), shown(10))
    with pytest.raises(KernelError, match="more pools than BPF has room for"):
        stage.read()

    assert stage.read().is_whole


@pytest.mark.parametrize(
    ("before", "number", "after", "agree"),
    [
        (90, 90, 90, True),
        (90, 30, 90, True),  # so many may come and go
        (95, 20, 95, False),
        (20, 95, 20, False),
        (30, 95, 20, True),  # the walks show that more do
    ],
)
def test_they_agree_up_to_what_comes_and_goes(before: int, number: int, after: int, *, agree: bool) -> None:
    found = disagreement(walked(before), shown(number), walked(after))

    assert (found is None) is agree


def test_sockets_beside_a_listener_and_on_ports_that_are_not_usable_are_not_compared() -> None:
    accepted = connected(HERE, range(LOW, LOW + 80), THERE, PORT)
    dump = make_tcp(*(listening("0.0.0.0", port) for port in range(LOW, LOW + 80)), accepted)
    outside = make_tcp(connected(HERE, range(50_000, 50_080), THERE, PORT))

    assert disagreement(walked(0), dump, walked(0)) is None
    assert disagreement(walked(0), outside, walked(0)) is None
