"""The tracing instance: set up and removed without a trace, found and cleaned up, and what stands in its way."""

from __future__ import annotations

import os
import resource
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import KernelError
from ephmon.kernel.trace import tracefs
from ephmon.kernel.trace.tracefs import InstanceInUseError, make_instance, open_instance, remove_stale, use_instance
from tests import tracing
from tests.namespaces import Agent, Namespace
from tests.processes import run
from tests.tracing import (
    HERE,
    PREPARED,
    TRACING,
    exhaust,
    failures,
    host_pids,
    only_root,
    seeing_tracefs,
    total,
    tracing_agent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ephmon.kernel.trace.tracefs import Instance

PREPARE = Path(__file__).parents[3] / "deploy" / "systemd" / "prepare-tracing"
NOBODY = 65_534
EVENT = "events/sock/inet_sock_set_state"

NOT_SET_UP = "{0} is {1}; before you enable the event, run: echo '{2}' > {0}"
NO_TRACEPOINT = (
    "{0}/format cannot be used (No such file or directory): this is not a tracing instance, or the kernel "
    "lacks sock:inet_sock_set_state (Linux 4.16)."
)

held = ExitStack()


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


@pytest.fixture(name="agent")
def _agent(ns: Namespace) -> Iterator[Agent]:
    agent = tracing_agent(ns)
    before = agent.call(tracing.instances)
    try:
        yield agent
        agent.call(close)
        left = tracing.ours(agent.call(tracing.instances)) - before
        agent.call(tracing.remove_instances, left)
    finally:
        agent.close()
    assert left == set()


def close() -> None:
    held.close()


def make() -> str:
    return held.enter_context(make_instance(TRACING)).directory.name


def settings(name: str) -> dict[str, str]:
    instance = TRACING / "instances" / name
    names = ("buffer_percent", "tracing_on", f"{EVENT}/filter", f"{EVENT}/enable")
    return {name: (instance / name).read_text().strip() for name in names}


def switches_outside(name: str) -> set[str]:
    """Return what the switch of the event says outside an instance."""
    others = [path for path in (TRACING / "instances").iterdir() if not path.name.startswith("ephmon")]
    return {(path / EVENT / "enable").read_text().strip() for path in (TRACING, *others) if path.name != name}


@only_root
def test_a_tracefs_that_is_mounted_already_is_used() -> None:
    """As on every host with systemd: the outer command is such a host, if this one is not."""
    done = run(seeing_tracefs(*seeing_tracefs("test", "-d", "/sys/kernel/tracing/instances")))

    assert (done.returncode, done.stderr) == (0, "")


@only_root
def test_an_instance_records_and_nothing_else_does(agent: Agent) -> None:
    outside = agent.call(switches_outside, "")
    name = agent.call(make)

    assert agent.call(settings, name) == {
        "buffer_percent": "0",
        "tracing_on": "1",
        f"{EVENT}/filter": "oldstate==2&&newstate==7&&sport==0&&protocol==6",
        f"{EVENT}/enable": "1",
    }
    assert agent.call(switches_outside, name) == outside


@only_root
def test_closing_removes_the_instance(agent: Agent) -> None:
    name = agent.call(make)
    assert name in agent.call(tracing.instances)
    agent.call(close)

    assert name not in agent.call(tracing.instances)


def used_and_removed_after(step: str, use: Callable[..., Instance], directory: Path) -> str:
    """Return the error about an instance that somebody removes after a step of ours."""
    original = getattr(tracefs, step)

    def remove_after(*arguments: Any) -> Any:
        outcome = original(*arguments)
        for instance in (TRACING / "instances").glob(f"ephmon-{os.getpid()}-*"):
            instance.rmdir()
        return outcome

    setattr(tracefs, step, remove_after)
    try:
        use(directory).close()
    except KernelError as error:
        return str(error)
    finally:
        setattr(tracefs, step, original)
    return "no error"


def use_and_lose() -> str:
    directory = TRACING / "instances" / f"ephmon-{os.getpid()}-prepared"
    directory.mkdir()
    return used_and_removed_after("_lock", use_instance, directory)


def make_and_lose() -> str:
    return used_and_removed_after("_processors", make_instance, TRACING)


@only_root
def test_an_instance_that_has_just_been_removed_is_not_taken_for_a_kernel_without_tracing(agent: Agent) -> None:
    """Its files are absent then, as they are where the tracepoint is not built in."""
    said = "The tracing instance in {} was removed while ephmon opened it; ephmon tries again within a minute."
    name = f"ephmon-{agent.pid}-prepared"

    assert agent.call(use_and_lose) == said.format(TRACING / "instances" / name)
    assert agent.call(make_and_lose) == said.format(TRACING / "instances")


def make_without_descriptors() -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as lowest_free:  # noqa: PTH123
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno() + 2, limit[1]))
    try:
        make_instance(TRACING).close()
    except KernelError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    return "no error"


@only_root
def test_too_few_descriptors_are_no_fault_of_tracefs(agent: Agent) -> None:
    said = agent.call(make_without_descriptors)

    assert "(Too many open files): raise the limit of open files: LimitNOFILE= in the systemd unit" in said


@only_root
def test_what_a_crash_left_is_removed_by_the_next_start_and_what_lives_is_not(ns: Namespace, agent: Agent) -> None:
    crashing, living = tracing_agent(ns), tracing_agent(ns)
    stale, kept = crashing.call(make), living.call(make)
    crashing.close()
    assert stale in agent.call(tracing.instances)
    mine = agent.call(make)

    assert agent.call(tracing.instances) >= {mine, kept}
    assert stale not in agent.call(tracing.instances)
    living.call(close)
    living.close()


@only_root
def test_instances_of_others_are_left_alone(agent: Agent) -> None:
    names = {"ephmon", "ephmon-of-mine", f"other-{os.getpid()}-0123abcd"}
    agent.call(make_directories, names)
    agent.call(clean_up)

    assert names <= agent.call(tracing.instances)
    agent.call(tracing.remove_instances, names)


def make_directories(names: set[str]) -> None:
    for name in names:
        (TRACING / "instances" / name).mkdir()


def clean_up() -> None:
    remove_stale(TRACING / "instances")


# --- prepared by somebody else ------------------------------------------------------------------------------------


def prepare(group: str) -> None:
    """Do what the service manager does: run the script, which speaks of /sys, and bind the instance to its place."""
    subprocess.run(["mount", "--bind", TRACING, "/sys/kernel/tracing"], check=True)
    instance = TRACING / "instances" / "ephmon"
    instance.mkdir()  # fails if there is one of somebody who is at work here
    try:
        subprocess.run([PREPARE, group], check=True)
    except subprocess.CalledProcessError:
        instance.rmdir()
        raise
    PREPARED.mkdir()
    subprocess.run(["mount", "--bind", "-o", "ro", instance, PREPARED], check=True)


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@pytest.fixture(name="prepared")
def _prepared(ns: Namespace) -> Iterator[Agent]:
    """An agent without privileges in a place where root has prepared an instance for its group."""
    exhaust(ns, HERE)
    agent, root = tracing_agent(ns), tracing_agent(ns)
    agent.call(prepare, str(NOBODY))
    try:
        agent.call(become_nobody)
        yield agent
    finally:
        agent.close()
        root.call(tracing.remove_instances, {"ephmon"})
        root.close()


@only_root
@host_pids
def test_a_prepared_instance_needs_no_privileges(ns: Namespace, prepared: Agent) -> None:
    """Not even to tell our own namespace from others."""
    ns.call(failures, HERE, 5)  # before it is opened: not counted
    prepared.call(tracing.open_prepared_collector)
    assert ns.call(failures, HERE, 250) == 250

    batch = prepared.call(tracing.collected)
    own = {netns: number for netns, number in batch.totals.items() if netns.label == "own"}
    assert list(own.values()) == [250]
    assert {event.pid for event in batch.events if event.netns.label == "own"} == {ns.pid}
    assert total(batch) + batch.lost >= 250


@only_root
@host_pids
def test_a_prepared_instance_stays_when_it_is_closed(prepared: Agent) -> None:
    prepared.call(tracing.open_prepared_collector)
    prepared.call(tracing.close_all)
    prepared.call(tracing.open_prepared_collector)


def open_twice() -> None:
    with use_instance(PREPARED):
        use_instance(PREPARED)


def change_prepared(name: str, text: str) -> None:
    (PREPARED / name).write_text(text)


@only_root
def test_a_prepared_instance_has_one_reader(prepared: Agent) -> None:
    with pytest.raises(InstanceInUseError, match=f"^Another ephmon reads {PREPARED}; prepare an instance for each."):
        prepared.call(open_twice)


@only_root
def test_the_group_may_change_nothing(prepared: Agent) -> None:
    for name in ("tracing_on", f"{EVENT}/enable", f"{EVENT}/filter", "trace_clock"):
        with pytest.raises(OSError, match=r"Permission denied|Read-only"):
            prepared.call(change_prepared, name, "0")


# --- what stands in the way ---------------------------------------------------------------------------------------


def make_files(directory: Path, **changes: str | None) -> Path:
    """Make the files of an instance, as far as they are looked at first; changes are by the last part of the name."""
    data = Path(__file__).parents[1] / "data" / "tracefs"
    contents: dict[str, str | None] = {
        "events/header_page": (data / "header_page").read_text(encoding="ascii"),
        f"{EVENT}/format": (data / "format").read_text(encoding="ascii"),
        f"{EVENT}/filter": "oldstate==2&&newstate==7&&sport==0&&protocol==6\n",
        f"{EVENT}/enable": "1\n",
        "trace_clock": "local global counter [mono] boot\n",
        "tracing_on": "1\n",
        "per_cpu/cpu0/stats": "entries: 0\noverrun: 2\ncommit overrun: 30\ndropped events: 400\nread events: 9\n",
        "per_cpu/cpu0/trace_pipe_raw": "",
    }
    for name, content in contents.items():
        changed = changes.get(name.rpartition("/")[2], content)
        if changed is not None:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(changed, encoding="ascii")
    return directory


def refusal(directory: Path) -> str:
    with pytest.raises(KernelError) as caught:
        use_instance(directory)
    assert caught.value.reason == "tracefs"
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"filter": "none\n"},
            NOT_SET_UP.format("{0}/filter", "none", "oldstate==2&&newstate==7&&sport==0&&protocol==6"),
        ),
        (
            {"trace_clock": "[local] global mono\n"},
            NOT_SET_UP.format("{1}/trace_clock", "'[local] global mono'", "mono"),
        ),
        ({"format": None}, NO_TRACEPOINT),
    ],
)
def test_an_instance_that_is_not_set_up_is_refused(
    tmp_path: Path, changes: dict[str, str | None], sentence: str
) -> None:
    assert refusal(make_files(tmp_path, **changes)) == sentence.format(f"{tmp_path}/{EVENT}", tmp_path)


def test_lost_events_are_all_that_the_kernel_names(tmp_path: Path) -> None:
    with use_instance(make_files(tmp_path)) as instance:
        assert instance.lost() == 432


def test_a_counter_that_is_not_there_is_an_error_and_not_0(tmp_path: Path) -> None:
    with (
        use_instance(make_files(tmp_path, stats="entries: 0\noverrun: 2\n")) as instance,
        pytest.raises(KernelError, match=r"stats lacks counters of lost events"),
    ):
        instance.lost()


@pytest.mark.parametrize("switch", ["tracing_on", "enable"])
def test_an_instance_that_is_off_is_an_error(tmp_path: Path, switch: str) -> None:
    with use_instance(make_files(tmp_path)) as instance:
        instance.require_on()
        (path,) = tmp_path.rglob(switch)
        path.write_text("0\n", encoding="ascii")
        with pytest.raises(KernelError) as caught:
            instance.require_on()

    assert str(caught.value) == f"{path} is off; switch it on: echo 1 > {path}"


def test_a_prepared_instance_that_another_reads_is_left_to_it(tmp_path: Path) -> None:
    """It is the next place that fails then."""
    prepared = make_files(tmp_path / "prepared")
    with open_instance(tmp_path, prepared) as instance:
        assert instance.directory == prepared
        with pytest.raises(KernelError, match="No tracefs is mounted"):
            open_instance(tmp_path, prepared)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = open_descriptors()
    use_instance(make_files(tmp_path)).close()
    refusal(make_files(tmp_path, filter="none"))
    with use_instance(make_files(tmp_path)), pytest.raises(InstanceInUseError):
        use_instance(tmp_path)

    assert open_descriptors() == before


def test_without_tracefs_it_says_what_to_mount(tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        open_instance(tmp_path, tmp_path / "prepared")
    assert str(caught.value) == f"No tracefs is mounted at {tmp_path}; mount one: mount -t tracefs tracefs {tmp_path}"

    nowhere = tmp_path / "nowhere"
    with pytest.raises(KernelError) as caught:
        open_instance(nowhere, tmp_path / "prepared")
    assert str(caught.value) == (
        f"There is no {nowhere}: the kernel is built without tracing, or a container or sandbox hides it."
    )


def make_as_nobody() -> None:
    become_nobody()
    make_instance(TRACING)


@only_root
def test_without_permission_it_says_what_to_grant(ns: Namespace) -> None:
    unprivileged = tracing_agent(ns)
    with pytest.raises(KernelError) as caught:
        unprivileged.call(make_as_nobody)
    unprivileged.close()

    assert str(caught.value) == (
        f"{TRACING}/instances cannot be used (Permission denied): tracefs belongs to root; prepare an instance for "
        "ephmon, as docs/exhaustions.md says, or run it as root."
    )
