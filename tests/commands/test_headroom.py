"""`ephmon headroom`: each form of the question, its answer for people and for programs, and how it fails."""

from __future__ import annotations

import errno
import json
import tempfile
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ephmon.commands import headroom as command
from ephmon.kernel.deadline import Deadline
from tests import sockets
from tests.commands.answers import Answer, answer
from tests.kernel_truth.experiment import leave_time_wait
from tests.namespaces import Agent, Namespace
from tests.ordinary_user import as_ordinary_user
from tests.processes import ephmon, put, run
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

LOW, HIGH = 40_000, 40_999
HERE, OWN, V6 = "127.0.0.1", "10.8.0.1", "::1"
FAILS = "Then connect() fails with EADDRNOTAVAIL. Blocked ports count for every destination.\n"
FULL = "1000 usable ports - 0 in use = 1000.\n"
TCP_BIND = (
    "Then bind() to port 0 fails with EADDRINUSE. Each such socket also takes a port from every plain connect().\n"
)
UDP_BIND = "Then bind() to port 0 fails with EADDRINUSE, for every destination.\n"
UDP_CONNECT = "Then connect() or sendto() fails with EAGAIN, for every destination.\n"


PROBED = Answer(
    0,
    f"995 more connections from {HERE} to {HERE}:80.\n1000 usable ports - 5 blocked - 0 in use = 995.\n{FAILS}",
    "",
)
"""What is said while 5 of 25 ports in doubt are blocked."""
NEITHER_WAY = (
    "ephmon: The probe needs bit 0 of net.ipv4.tcp_fastopen, which is set by default, or CAP_NET_ADMIN. "
    "Set that bit, or run ephmon as root.\n"
)


def headroom(*arguments: str) -> Answer:
    """Run `ephmon headroom` in the process that this is called in."""
    return answer("headroom", *arguments)


def headroom_with_a_late_probe(*arguments: str) -> Answer:
    """Run `ephmon headroom --probe` with no time left once the sockets have been read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "Deadline", lambda _seconds, clock: Deadline(0.0, clock))
        return headroom(*arguments, "--probe")


@pytest.fixture(name="agent", scope="module")
def _agent() -> Iterator[Namespace]:
    """A host that is used by many tests, of which each leaves nothing behind."""
    with host() as ns:
        yield ns


@contextmanager
def host() -> Iterator[Namespace]:
    """A host with a range of 1,000 ports, and servers outside it."""
    with Namespace(addresses=[f"{OWN}/32"]) as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
        for address, port in ((HERE, 80), (HERE, 81), (OWN, 80), (V6, 80)):
            ns.call(sockets.listen, address, port, tag="server")
        yield ns


@pytest.fixture(name="ask")
def _ask(agent: Namespace, config: Path) -> Iterator[Ask]:
    yield Ask(agent, config)
    agent.call(abort_all_but_servers)


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    """A configuration of its own, so that neither what this host has in /etc nor how busy it is matters."""
    config = tmp_path / "config.yaml"
    config.write_text("poll: {deadline: 30s}\n", encoding="utf-8")
    return config


def abort_all_but_servers() -> None:
    """Close what a test opened, so that nothing is left of it."""
    for tag in set(sockets.held) - {"server"}:
        sockets.abort(tag)


class Ask:
    """Asks for headroom in a namespace."""

    def __init__(self, agent: Namespace, config: Path) -> None:
        self.agent = agent
        self.config = ("--config", str(config))

    def __call__(self, *arguments: str) -> Answer:
        return self.agent.call(headroom, *self.config, *arguments)

    def json(self, *arguments: str) -> dict[str, Any]:
        """Return the document that is printed."""
        answer = self(*arguments, "--json")
        assert (answer.status, answer.err, answer.out.count("\n")) == (0, "", 1)
        document: dict[str, Any] = json.loads(answer.out)
        return document

    def open(self, recipe: Recipe, number: int = sockets.ALL_PORTS, tag: str = "others") -> FillResult:
        return self.agent.call(sockets.open_sockets, recipe, tag=tag, limit=number)


# --- the forms of the question ------------------------------------------------------------------------------------

FORMS = {
    "a destination": ([f"{HERE}:80"], f"1000 more connections from {HERE} to {HERE}:80.", FAILS),
    "an own address": ([f"{OWN}:80"], f"1000 more connections from {OWN} to {OWN}:80.", FAILS),
    "an IPv6 destination": ([f"[{V6}]:80"], f"1000 more connections from {V6} to [{V6}]:80.", FAILS),
    "a mapped destination": ([f"[::ffff:{HERE}]:80"], f"1000 more connections from {HERE} to {HERE}:80.", FAILS),
    "a source": ([f"{HERE}:80", "--from", OWN], f"1000 more connections from {OWN} to {HERE}:80.", FAILS),
    "a source to bind": (["--bind", OWN], f"1000 more TCP sockets bound to {OWN} and any port.", TCP_BIND),
    "any source to bind": (["--bind", "0.0.0.0"], "1000 more TCP sockets bound to 0.0.0.0 and any port.", TCP_BIND),
    "UDP": ([f"{HERE}:53", "--udp"], "1000 more UDP sockets from 0.0.0.0 to any destination.", UDP_CONNECT),
    "UDP over IPv6": (
        [f"[{V6}]:53", "--udp"],
        "1000 more dual-stack UDP sockets from :: to any destination.",
        UDP_CONNECT,
    ),
    "any IPv6 source to bind": (
        ["--bind", "::"],
        "1000 more dual-stack TCP sockets bound to :: and any port.",
        TCP_BIND,
    ),
    "any IPv6 source to bind for UDP": (
        ["--bind", "::", "--udp"],
        "1000 more dual-stack UDP sockets bound to :: and any port.",
        UDP_BIND,
    ),
    "an IPv6 source to bind": (["--bind", V6], f"1000 more TCP sockets bound to {V6} and any port.", TCP_BIND),
    "a source in brackets": (
        [f"[{V6}]:80", "--from", f"[{V6}]"],
        f"1000 more connections from {V6} to [{V6}]:80.",
        FAILS,
    ),
    "a source to bind in brackets": (
        ["--bind", f"[{V6}]"],
        f"1000 more TCP sockets bound to {V6} and any port.",
        TCP_BIND,
    ),
    "a UDP source": (
        [f"{HERE}:53", "--udp", "--from", OWN],
        f"1000 more UDP sockets bound to {OWN} and any port.",
        UDP_BIND,
    ),
    "a UDP source to bind": (["--bind", OWN, "--udp"], f"1000 more UDP sockets bound to {OWN} and any port.", UDP_BIND),
}


@pytest.mark.parametrize(("arguments", "number", "failure"), FORMS.values(), ids=FORMS)
def test_the_answer_is_three_lines_also_for_a_pool_without_a_socket(
    ask: Ask, arguments: list[str], number: str, failure: str
) -> None:
    assert ask(*arguments) == (0, f"{number}\n{FULL}{failure}", "")


def test_the_second_line_says_what_makes_up_the_number(ask: Ask) -> None:
    ask.open(Recipe(bind=(HERE, LOW + 100), connect=(HERE, 81)), 1)
    ask.open(Recipe(bind=("127.0.0.9", 0), no_port=True, connect=(HERE, 80)), 30)

    number, total, failure = ask(f"{HERE}:80", "--from", "127.0.0.9").out.splitlines(keepends=True)
    assert number == f"969 more connections from 127.0.0.9 to {HERE}:80.\n"
    assert total == "1000 usable ports - 1 blocked - 30 in use = 969.\n"
    assert failure == FAILS


def test_an_estimate_comes_with_its_bounds(ask: Ask) -> None:
    ask.open(Recipe(connect=(HERE, 81)), 20)

    assert ask(f"{HERE}:80", "--no-probe").out.splitlines()[0] == (
        f"1000 more connections from {HERE} to {HERE}:80 (an estimate: at least 980, at most 1000)."
    )


@pytest.mark.parametrize("option", [[], ["--probe"]])
def test_it_asks_the_kernel_for_the_number_by_itself(ask: Ask, option: list[str]) -> None:
    ask.open(Recipe(connect=(HERE, 81)), 20)
    ask.open(Recipe(bind=(HERE, 0), connect=(HERE, 81)), 5, tag="bound")

    assert ask(f"{HERE}:80", *option) == PROBED
    document = ask.json(f"{HERE}:80", *option)
    assert (document["method"], document["exact"], document["blocked_ports"]) == ("probe", True, 5)


def test_no_probe_keeps_it_from_asking_and_so_does_the_configuration(ask: Ask, config: Path) -> None:
    ask.open(Recipe(connect=(HERE, 81)), 20)

    def seen(*option: str) -> tuple[str, int]:
        document = ask.json(f"{HERE}:80", *option)
        return document["method"], document["remaining_ports_min"]

    assert seen("--no-probe") == ("inet_diag", 980)
    put(config, "poll: {probe: never}\n")
    assert seen() == ("inet_diag", 980)
    assert seen("--probe") == ("probe", 1000)


def test_a_number_that_is_exact_already_needs_no_asking(ask: Ask) -> None:
    ask.open(Recipe(connect=(HERE, 80)), 20)

    assert ask.json(f"{HERE}:80")["method"] == "inet_diag"
    assert ask.json(f"{HERE}:80", "--probe")["method"] == "probe"


def test_the_probe_needs_no_privilege(ask: Ask) -> None:
    ask.open(Recipe(connect=(HERE, 81)), 20)
    ask.open(Recipe(bind=(HERE, 0), connect=(HERE, 81)), 5, tag="bound")
    with tempfile.TemporaryDirectory(prefix="ephmon-test-") as folder:
        Path(folder).chmod(0o755)
        config = put(Path(folder) / "config.yaml", "poll: {deadline: 30s}\n")
        arguments = "--config", str(config), f"{HERE}:80", "--probe"
        assert ask.agent.call(headroom, *arguments) == PROBED  # which imports all that it needs

        assert ask.agent.call(as_ordinary_user, headroom, *arguments) == PROBED


@pytest.mark.parametrize(
    ("reuse", "total"),
    [
        (0, "1000 usable ports - 40 in use (40 in TIME_WAIT) = 960."),
        (1, "1000 usable ports - 40 in use (40 in TIME_WAIT) + 40 of them reusable = 1000."),
    ],
)
def test_time_wait_has_its_place_in_the_sum(config: Path, reuse: int, total: str) -> None:
    with host() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", reuse)
        ns.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
        ns.call(leave_time_wait, 40, Recipe(connect=(OWN, 80)))

        assert Ask(ns, config)(f"{OWN}:80").out.splitlines()[1] == total


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_json_is_the_pool_with_its_schema_and_method(ask: Ask) -> None:
    ask.open(Recipe(bind=(HERE, 0), no_port=True, connect=(HERE, 80)), 250)
    document = ask.json(f"{HERE}:80")
    taken_at = datetime.fromisoformat(document.pop("taken_at"))

    assert taken_at.utcoffset() is not None
    assert document == {
        "schema": 1,
        "method": "inet_diag",
        "netns": "own",
        "kind": "tcp_connect",
        "source": HERE,
        "destination": HERE,
        "destination_port": 80,
        "usable_ports": 1000,
        "blocked_ports": 0,
        "capacity_ports": 1000,
        "in_use_ports": 250,
        "time_wait_ports": 0,
        "reusable_ports": 0,
        "remaining_ports": 750,
        "remaining_ports_min": 750,
        "remaining_ports_max": 750,
        "exact": True,
        "doubted": False,
        "failure_errno": "EADDRNOTAVAIL",
        "connect_search_ports": pytest.approx(2.0, rel=0.01),
        "utilisation_ratio": 0.25,
        "states": {"established": 250},
        "peer_timestamps": None,
        "only_on_devices_ports": 0,
        "named_sockets": 0,
        "application_chooses_ports": False,
    }


@pytest.mark.parametrize(
    ("arguments", "kind", "source", "failure"),
    [
        (["--bind", OWN], "tcp_bind", OWN, "EADDRINUSE"),
        (["--bind", f"::ffff:{OWN}"], "tcp_bind", OWN, "EADDRINUSE"),
        (["--bind", "::", "--udp"], "udp_bind", "::", "EADDRINUSE"),
        ([f"{OWN}:53", "--udp"], "udp_connect", "0.0.0.0", "EAGAIN"),
        ([f"[{V6}]:53", "--udp"], "udp_connect", "::", "EAGAIN"),
    ],
)
def test_json_of_a_pool_without_a_destination(
    ask: Ask, arguments: list[str], kind: str, source: str, failure: str
) -> None:
    document = ask.json(*arguments)

    assert (document["kind"], document["source"], document["failure_errno"]) == (kind, source, failure)
    assert (document["destination"], document["destination_port"], document["blocked_ports"]) == (None, None, 0)


def test_the_method_is_the_backend_that_was_read(ask: Ask, tmp_path: Path) -> None:
    config = tmp_path / "procfs.yaml"
    config.write_text("poll: {backend: procfs, deadline: 30s}\n", encoding="utf-8")
    document = ask.json(f"{HERE}:80", "--no-probe", "--config", str(config))

    assert (document["method"], document["exact"], document["remaining_ports"]) == ("procfs", False, 1000)


# --- with every port taken ----------------------------------------------------------------------------------------

EXHAUSTED = {
    "tcp_connect": ([f"{HERE}:80"], Recipe(connect=(HERE, 80))),
    "tcp_bind": (["--bind", HERE], Recipe(bind=(HERE, 0), connect=(HERE, 80))),
    "udp_connect": ([f"{HERE}:53", "--udp"], Recipe(udp=True, connect=(HERE, 53))),
    "udp_bind": (["--bind", HERE, "--udp"], Recipe(udp=True, bind=(HERE, 0))),
}


@pytest.mark.parametrize(("arguments", "recipe"), EXHAUSTED.values(), ids=EXHAUSTED)
def test_an_exhausted_pool_has_0_and_the_command_needs_no_port(ask: Ask, arguments: list[str], recipe: Recipe) -> None:
    assert ask.open(recipe).count == 1000

    document = ask.json(*arguments)
    assert (document["remaining_ports"], document["utilisation_ratio"]) == (0, 1.0)
    assert ask(*arguments).out.startswith("0 more ")


def test_with_no_port_left_for_any_purpose_every_form_answers(ask: Ask) -> None:
    for recipe in (Recipe(bind=("::", 0), v6only=False), Recipe(udp=True, bind=("::", 0), v6only=False)):
        assert ask.open(recipe).count == 1000

    for arguments, _, _ in FORMS.values():
        answer = ask(*arguments)
        assert (answer.status, answer.err, answer.out[:7]) == (0, "", "0 more ")
    assert ask.json(f"{HERE}:80", "--probe")["remaining_ports"] == 0


# --- failures -----------------------------------------------------------------------------------------------------

NOT_A_QUESTION = "headroom needs either DESTINATION:PORT or --bind SOURCE."
HELP = "; see `ephmon headroom --help`."
NOT_SENT_FROM = "address, which cannot be a source; use an address of this host."
LINK_LOCAL = "fe80::1 is link-local and needs a device, which no pool has; use another address"
FAILS_THERE = "address: a TCP connect() to it fails with ENETUNREACH."
A_NAME = "is a name; use an address, because ephmon does not look up names"
WRONG = {
    "nothing": ([], NOT_A_QUESTION),
    "UDP alone": (["--udp"], NOT_A_QUESTION),
    "both": ([f"{HERE}:80", "--bind", HERE], NOT_A_QUESTION),
    "no port": ([HERE], f"argument DESTINATION:PORT: {HERE} has no port; use ADDRESS:PORT{HELP}"),
    "port 0": ([f"{HERE}:0"], f"argument DESTINATION:PORT: 0 is out of range; use a number from 1 to 65535{HELP}"),
    "a name": (
        ["example.net:80"],
        f"argument DESTINATION:PORT: example.net {A_NAME}{HELP}",
    ),
    "no destination": (
        ["0.0.0.0:80"],
        f"argument DESTINATION:PORT: connect() to 0.0.0.0 means loopback; use 127.0.0.1 or ::1{HELP}",
    ),
    "no IPv6 destination": (
        ["[::]:80"],
        f"argument DESTINATION:PORT: connect() to :: means loopback; use 127.0.0.1 or ::1{HELP}",
    ),
    "a link-local destination": (
        ["[fe80::1]:80"],
        f"argument DESTINATION:PORT: {LINK_LOCAL}{HELP}",
    ),
    "two families": ([f"{HERE}:80", "--from", V6], f"--from {V6} and {HERE} belong to different families."),
    "any source": (
        [f"{HERE}:80", "--from", "0.0.0.0"],
        "--from 0.0.0.0 means any address; use one address, or leave out --from.",
    ),
    "two sources": (
        ["--bind", HERE, "--from", HERE],
        "--from needs a destination; --bind already names the source.",
    ),
    "a probe of bind": (
        ["--bind", HERE, "--probe"],
        "--probe works for TCP connect() only; other pools have no ambiguous ports.",
    ),
    "a probe of UDP": (
        [f"{HERE}:53", "--udp", "--probe"],
        "--probe works for TCP connect() only; other pools have no ambiguous ports.",
    ),
    "an unknown option": (
        [f"{HERE}:80", "--fast"],
        f"unrecognized arguments: --fast{HELP}",
    ),
    "a source with a port": (
        [f"{HERE}:80", "--from", f"{HERE}:5"],
        f"argument --from: {HERE}:5: a port is not allowed here; use the address alone{HELP}",
    ),
    "a multicast source": (
        [f"{HERE}:80", "--from", "224.0.0.1"],
        f"--from 224.0.0.1 is a multicast {NOT_SENT_FROM}",
    ),
    "a multicast source to bind": (["--bind", "ff02::1"], f"--bind ff02::1 is a multicast {NOT_SENT_FROM}"),
    "a broadcast source to bind": (
        ["--bind", "255.255.255.255"],
        f"--bind 255.255.255.255 is a broadcast {NOT_SENT_FROM}",
    ),
    "the broadcast address of a network": (
        [f"{HERE}:80", "--udp", "--from", "127.255.255.255"],
        f"--from 127.255.255.255 is a broadcast {NOT_SENT_FROM}",
    ),
    "a multicast destination": (["224.0.0.1:80"], f"224.0.0.1 is a multicast {FAILS_THERE}"),
    "an IPv6 multicast destination": (["[ff0e::1]:80"], f"ff0e::1 is a multicast {FAILS_THERE}"),
    "a broadcast destination": (["255.255.255.255:80"], f"255.255.255.255 is a broadcast {FAILS_THERE}"),
    "a broadcast destination from a source": (
        ["127.255.255.255:80", "--from", HERE],
        f"127.255.255.255 is a broadcast {FAILS_THERE}",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_usage_is_one_sentence_and_status_2(ask: Ask, arguments: list[str], sentence: str) -> None:
    assert ask(*arguments) == (2, "", f"ephmon: {sentence}\n")


def test_a_missing_config_is_status_2(ask: Ask, tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    answer = ask(f"{HERE}:80", "--config", str(missing))

    assert answer == (2, "", f"ephmon: {missing}: the file cannot be read: No such file or directory\n")


def test_a_destination_without_a_route_is_status_1(ask: Ask) -> None:
    assert ask("10.50.0.1:80") == (
        1,
        "",
        "ephmon: There is no route to 10.50.0.1: Network is unreachable (ENETUNREACH).\n",
    )
    assert ask("10.50.0.1:80", "--from", HERE).status == 0


FOREIGN = {
    "a source": ([f"{HERE}:80", "--from", "10.99.0.1"], "10.99.0.1", "net.ipv4.ip_nonlocal_bind or IP_FREEBIND"),
    "a source to bind": (["--bind", "10.99.0.1"], "10.99.0.1", "net.ipv4.ip_nonlocal_bind or IP_FREEBIND"),
    "a UDP source": (["--bind", "10.99.0.1", "--udp"], "10.99.0.1", "net.ipv4.ip_nonlocal_bind or IP_FREEBIND"),
    "an IPv6 source": (["--bind", "fd99::1"], "fd99::1", "net.ipv6.ip_nonlocal_bind or IPV6_FREEBIND"),
}


@pytest.mark.parametrize(("arguments", "address", "exceptions"), FOREIGN.values(), ids=FOREIGN)
def test_an_address_that_the_host_does_not_have_is_status_1(
    ask: Ask, arguments: list[str], address: str, exceptions: str
) -> None:
    """It may come a moment later, so it is no wrong usage."""
    assert ask.open(Recipe(bind=(address, 0)), 1) == FillResult(0, errno.EADDRNOTAVAIL)
    sentence = f"This host does not have the address {address}: bind() to it fails with EADDRNOTAVAIL without"
    assert ask(*arguments) == (1, "", f"ephmon: {sentence} {exceptions}.\n")


def test_an_address_that_bind_takes_all_the_same_is_a_source(config: Path) -> None:
    with host() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_nonlocal_bind", 1)

        assert Ask(ns, config)("--bind", "10.99.0.1").out.startswith("1000 more TCP sockets bound to 10.99.0.1 ")


@pytest.mark.parametrize("clients", [0, 5])
def test_where_the_probe_is_not_possible_it_says_what_it_needs_after_the_bounds_and_is_status_1(
    config: Path, clients: int
) -> None:
    """Whether there is a port in doubt just now does not matter."""
    with host() as ns:
        ask = Ask(ns, config)
        ask.open(Recipe(connect=(HERE, 81)), clients)
        ns.call(sockets.write_sysctl, "net.ipv4.tcp_fastopen", 0)
        prefix = ns.command("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--")
        with closing(Agent(prefix)) as unprivileged:
            refused = unprivileged.call(headroom, *ask.config, f"{HERE}:80", "--probe")
            as_json = unprivileged.call(headroom, *ask.config, f"{HERE}:80", "--probe", "--json")
            by_itself = unprivileged.call(headroom, *ask.config, f"{HERE}:80")
            plain = unprivileged.call(headroom, *ask.config, f"{HERE}:80", "--no-probe")

    assert by_itself == (0, plain.out, NEITHER_WAY if clients else "")
    assert refused == (1, plain.out, NEITHER_WAY)
    assert (plain.status, plain.err, plain.out.count("\n")) == (0, "", 3)
    assert (f" (an estimate: at least {1000 - clients}, at most 1000)." in plain.out) is (clients > 0)
    assert (as_json.status, as_json.err) == (1, refused.err)
    document = json.loads(as_json.out)
    assert (document["method"], document["remaining_ports_min"]) == ("inet_diag", 1000 - clients)


def test_a_probe_that_is_cut_short_says_how_far_it_came_and_is_status_1(ask: Ask) -> None:
    ask.open(Recipe(connect=(HERE, 81)), 20)
    answer = ask.agent.call(headroom_with_a_late_probe, *ask.config, f"{HERE}:80")

    assert answer.status == 1
    assert answer.err == (
        "ephmon: The probe asked about 0 of 20 ports before poll.deadline passed; the bounds include the others. "
        "Raise poll.deadline for an exact number.\n"
    )
    assert answer.out.startswith(
        f"1000 more connections from {HERE} to {HERE}:80 (an estimate: at least 980, at most 1000)."
    )


def test_as_a_process_it_prints_the_same_and_ends_with_the_same_status(ask: Ask) -> None:
    for arguments in ([f"{HERE}:80"], [HERE], ["10.50.0.1:80"]):
        done = run(ask.agent.command(*ephmon("headroom", *ask.config, *arguments)))

        assert (done.returncode, done.stdout, done.stderr) == ask(*arguments)
