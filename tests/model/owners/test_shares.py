"""Owners: what a cgroup's path says of them, whose ports are counted, and whose the TIME_WAITs are likely to be."""

from __future__ import annotations

from array import array
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.owned_sockets import OwnerGroup, OwnerTable
from ephmon.facts.sockets import TcpState
from ephmon.model.owners.names import LONGEST_NAME, Owner, OwnerKind, owner_of
from ephmon.model.owners.shares import (
    MOST_REMEMBERED,
    Owners,
    OwnerShare,
    RecentOwners,
    apportion,
    blocked_owners,
    pool_owners,
    port_bits,
)
from ephmon.model.pools.kinds import PoolKey, PoolKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ID = "3f2a9c0b1d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeef"
SHORT = "3f2a9c0b1d4e"
POD = "kubepods-burstable-pod1a2b3c4d_0000_4111_8222_333344445555.slice"

UNIT, CONTAINER, SLICE, CGROUP, UID = (
    OwnerKind.UNIT,
    OwnerKind.CONTAINER,
    OwnerKind.SLICE,
    OwnerKind.CGROUP,
    OwnerKind.UID,
)


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/system.slice/haproxy.service", Owner(UNIT, "haproxy.service")),
        ("/system.slice/system-nginx.slice/nginx@blue.service", Owner(UNIT, "nginx@blue.service")),
        ("/system.slice/php-fpm.service/pool-www", Owner(UNIT, "php-fpm.service")),
        ("/init.scope", Owner(UNIT, "init.scope")),
        ("/user.slice/user-1000.slice/session-3.scope", Owner(UNIT, "user-1000.slice/session-3.scope")),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", Owner(UNIT, "user@1000.service")),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/proxy.service",
            Owner(UNIT, "user@1000.service/proxy.service"),
        ),
        ("/machine.slice/systemd-nspawn@deb.service/payload/a.service", Owner(UNIT, "systemd-nspawn@deb.service")),
        (f"/system.slice/docker-{ID}.scope", Owner(CONTAINER, SHORT)),
        (f"/docker/{ID}", Owner(CONTAINER, SHORT)),
        (f"/docker/{ID}/system.slice/nginx.service", Owner(CONTAINER, SHORT)),
        (f"/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-{ID}.scope", Owner(CONTAINER, SHORT)),
        (f"/kubepods.slice/{POD}/crio-{ID}.scope/container", Owner(CONTAINER, SHORT)),
        (f"/kubepods/burstable/pod1a2b3c4d-0000-4111-8222-333344445555/{ID}", Owner(CONTAINER, SHORT)),
        (
            f"/system.slice/containerd.service/kubepods-besteffort-pod1.slice:cri-containerd:{ID}",
            Owner(CONTAINER, SHORT),
        ),
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
            Owner(CONTAINER, f"user@1000.service/{SHORT}"),
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/lxc.payload.haproxy.service",
            Owner(CONTAINER, "user@1000.service/haproxy.service"),
        ),
        (f"/machine.slice/libpod-{ID}.scope/container", Owner(CONTAINER, SHORT)),
        ("/lxc.payload.web-1/system.slice/nginx.service", Owner(CONTAINER, "web-1")),
        (f"/kubepods.slice/{POD}", Owner(SLICE, POD)),
        ("/user.slice/user-1000.slice", Owner(SLICE, "user-1000.slice")),
        ("/garden/blue", Owner(CGROUP, "/garden/blue")),
        ("/sneaky\n\x1b[31m.service", Owner(UNIT, "sneaky\ufffd\ufffd[31m.service")),
    ],
)
def test_a_path_names_its_owner(path: str, owner: Owner) -> None:
    assert owner_of(path, 33) == owner


def test_what_watches_over_a_container_is_not_in_it() -> None:
    owner = owner_of(f"/machine.slice/libpod-conmon-{ID}.scope", 0)

    assert owner is not None
    assert owner.kind == OwnerKind.UNIT


@pytest.mark.parametrize("path", ["/", "", None])
def test_without_a_path_the_user_id_names_the_owner_if_it_is_known(path: str | None) -> None:
    assert owner_of(path, 33) == Owner(UID, "uid 33")
    assert owner_of(path, None) is None


def test_a_long_name_keeps_its_ends() -> None:
    owner = owner_of("/" + "a" * 200 + "b.service", None)

    assert owner == Owner(UNIT, "a" * 47 + "\u2026" + "a" * 38 + "b.service")


@given(st.text(max_size=300), st.integers(0, 9))
def test_any_path_gives_a_label(path: str, uid: int) -> None:
    owner = owner_of(path, uid)

    assert owner is not None
    assert owner.name.isprintable()
    assert 0 < len(owner.name) <= LONGEST_NAME


# --- counting -----------------------------------------------------------------------------------------------------

HAPROXY, NGINX, REDIS = (Owner(UNIT, f"{name}.service") for name in ("haproxy", "nginx", "redis"))
PATHS = {7: "/system.slice/haproxy.service", 8: "/system.slice/nginx.service", 9: "/system.slice/redis.service"}
TIME_WAIT, OPEN, LISTEN, BOUND = TcpState.TIME_WAIT, TcpState.ESTABLISHED, TcpState.LISTEN, TcpState.CLOSE
KEY = PoolKey(OWN_NETNS, PoolKind.TCP_CONNECT, "10.0.0.1", "10.0.0.9", 443)
ALL = port_bits(range(1 << 16))

Row = tuple[OwnerGroup, "Iterable[int]"]


def held(
    ports: Iterable[int],
    cgroup_id: int | None,
    *,
    uid: int | None = 0,
    state: int = OPEN,
    source: str = "10.0.0.1",
    to: tuple[str, int] = ("10.0.0.9", 443),
) -> Row:
    address, port = to
    return OwnerGroup(state, ip_address(source).packed, ip_address(address).packed, port, uid, cgroup_id), ports


def time_wait(ports: Iterable[int]) -> Row:
    return held(ports, None, uid=None, state=TIME_WAIT)


def make_table(*rows: Row) -> OwnerTable:
    return OwnerTable(
        groups=tuple(group for group, _ in rows),
        ports_of=tuple(array("H", ports) for _, ports in rows),
        inodes_of=tuple(array("I", [1 for _ in ports]) for _, ports in rows),
    )


def owners_of(*rows: Row, key: PoolKey = KEY, ports: int = ALL, recent: RecentOwners | None = None) -> Owners:
    return pool_owners(key, make_table(*rows), PATHS, ports=ports, recent=recent or RecentOwners(), now=1000.0)[0]


def blockers_of(*rows: Row, blocked: int = ALL, paths: Mapping[int, str] = PATHS) -> Owners:
    return blocked_owners(make_table(*rows), paths, blocked=blocked, recent=RecentOwners(), now=1000.0)[0]


def shares(owners: Owners) -> dict[str, tuple[int, int]]:
    """Return ports and those of them that are estimated, by the owner's name."""
    return {share.owner.name: (share.ports, share.estimated_ports) for share in owners.shares}


def test_ports_are_counted_by_owner_most_first() -> None:
    owners = owners_of(held(range(40_000, 40_003), 7), held(range(40_010, 40_017), 8), held([40_020], 7, state=8))

    assert owners == Owners(shares=(OwnerShare(owner=NGINX, ports=7), OwnerShare(owner=HAPROXY, ports=4)))
    assert not owners.shares[0].is_estimated


def test_a_port_that_two_owners_have_counts_for_both_and_one_of_two_users_of_a_unit_once() -> None:
    owners = owners_of(held([40_000], 7), held([40_000], 8), held([40_000], 7, uid=33))

    assert shares(owners) == {"haproxy.service": (1, 0), "nginx.service": (1, 0)}


def test_other_pools_and_ports_that_do_not_count_are_left_out() -> None:
    owners = owners_of(
        held([40_000, 40_001], 7),
        held([40_002], 7, source="10.0.0.2"),
        held([40_003], 7, to=("10.0.0.8", 443)),
        held([40_004], 7, to=("10.0.0.9", 444)),
        ports=port_bits(range(40_001, 41_000)),
    )

    assert shares(owners) == {"haproxy.service": (1, 0)}


def test_five_owners_are_named_and_the_rest_is_counted() -> None:
    rows = [held(range(40_000 + 100 * uid, 40_000 + 100 * uid + min(uid, 4)), None, uid=uid) for uid in range(1, 8)]
    owners = owners_of(*rows)

    # Among equals the name decides.
    assert shares(owners) == {"uid 4": (4, 0), "uid 5": (4, 0), "uid 6": (4, 0), "uid 7": (4, 0), "uid 3": (3, 0)}
    assert (owners.other_owners, owners.other_ports) == (2, 3)


@pytest.mark.parametrize(
    ("kind", "source", "counted"),
    [
        (PoolKind.TCP_BIND, "10.0.0.1", {1, 3, 4}),
        (PoolKind.TCP_BIND, "2001:db8::1", {4, 5}),
        (PoolKind.UDP_BIND, "10.0.0.2", {2, 3, 4}),
        (PoolKind.UDP_CONNECT, "0.0.0.0", {1, 2, 3, 4, 5}),
        (PoolKind.UDP_CONNECT, "::", {1, 2, 3, 4, 5}),
    ],
)
def test_of_pools_without_a_destination_every_socket_whose_address_overlaps_counts(
    kind: PoolKind, source: str, counted: set[int]
) -> None:
    addresses = ("10.0.0.1", "10.0.0.2", "0.0.0.0", "::", "2001:db8::1")
    rows = [held([40_000 + uid], None, uid=uid, source=address) for uid, address in enumerate(addresses, 1)]
    owners = owners_of(*rows, key=PoolKey(OWN_NETNS, kind, source, None, None))

    assert {int(share.owner.name.split()[1]) for share in owners.shares} == counted


# --- estimates ----------------------------------------------------------------------------------------------------


def test_time_waits_are_shared_out_by_the_owners_of_the_live_ports_if_nothing_else_is_known() -> None:
    owners = owners_of(held(range(40_000, 40_030), 7), held(range(40_100, 40_110), 8), time_wait(range(40_200, 40_220)))

    assert shares(owners) == {"haproxy.service": (45, 15), "nginx.service": (15, 5)}
    assert all(share.is_estimated for share in owners.shares)
    assert owners.unknown_ports == 0


def test_time_waits_that_nobody_was_seen_before_are_of_nobody() -> None:
    owners = owners_of(time_wait(range(40_000, 40_020)))

    assert owners == Owners(unknown_ports=20)


def test_a_time_wait_belongs_to_whoever_had_the_port_last() -> None:
    recent = RecentOwners().after(900.0, {HAPROXY: port_bits(range(40_000, 40_050)), NGINX: port_bits([40_100])})
    recent = recent.after(910.0, {NGINX: port_bits(range(40_000, 40_010))})
    owners = owners_of(time_wait(range(40_000, 40_050)), recent=recent)

    assert shares(owners) == {"haproxy.service": (40, 40), "nginx.service": (10, 10)}


def test_the_latest_of_several_spans_decides() -> None:
    recent = RecentOwners().after(900.0, {HAPROXY: port_bits([40_000])}).after(950.0, {NGINX: port_bits([40_000])})

    assert shares(owners_of(time_wait([40_000]), recent=recent)) == {"nginx.service": (1, 1)}


def test_ports_nobody_was_seen_with_are_shared_out_by_the_ports_given_up() -> None:
    """Whoever keeps its connections leaves no TIME_WAIT, however many it has."""
    keeps = range(41_000, 41_500)
    recent = RecentOwners().after(990.0, {REDIS: port_bits(keeps), NGINX: port_bits([40_000])})
    recent = recent.after(995.0, {REDIS: port_bits(keeps), NGINX: port_bits([40_001])})
    owners = owners_of(held(keeps, 9), held([40_002], 8), time_wait(range(45_000, 45_090)), recent=recent)

    assert shares(owners) == {"redis.service": (500, 0), "nginx.service": (91, 90)}


def test_a_port_that_is_live_again_is_nobodys_time_wait() -> None:
    owners = owners_of(held([40_000], 7), time_wait([40_000]))

    assert shares(owners) == {"haproxy.service": (1, 0)}


def test_a_closed_socket_is_its_cgroups_and_without_one_known_shared_out() -> None:
    known = held([40_000, 40_001], 7, uid=None, state=TcpState.FIN_WAIT1)
    unknown = held([40_002], 99, uid=None, state=TcpState.LAST_ACK)

    assert shares(owners_of(known, unknown)) == {"haproxy.service": (3, 1)}


def test_two_minutes_are_remembered() -> None:
    recent = RecentOwners().after(1000.0, {HAPROXY: port_bits([40_000])})

    assert recent.after(1119.9, {}).ports() == {HAPROXY: port_bits([40_000])}
    assert recent.after(1160.0, {}).ports() == {}


def test_what_is_remembered_is_bounded_however_many_owners_and_polls_there_are() -> None:
    recent = RecentOwners()
    for second in range(600):
        recent = recent.after(second, {Owner(UID, f"uid {second}-{n}"): port_bits(range(n, 99)) for n in range(20)})

    assert len(recent.spans) <= 4
    assert all(len(span.ports) == MOST_REMEMBERED for span in recent.spans)


def test_a_reading_is_remembered_for_the_next() -> None:
    _, recent = pool_owners(KEY, make_table(held([40_000], 7)), PATHS, ports=ALL, recent=RecentOwners(), now=1000.0)
    owners, _ = pool_owners(KEY, make_table(time_wait([40_000])), PATHS, ports=ALL, recent=recent, now=1030.0)

    assert shares(owners) == {"haproxy.service": (1, 1)}


@given(st.integers(0, 10_000), st.dictionaries(st.sampled_from([HAPROXY, NGINX, REDIS]), st.integers(0, 500)))
def test_apportioning_loses_and_adds_nothing(number: int, weights: dict[Owner, int]) -> None:
    given_to = apportion(number, weights)
    total = sum(weights.values())

    assert sum(given_to.values()) == (number if total else 0)
    assert all(abs(part - number * weights[owner] / total) < 1 for owner, part in given_to.items())


def test_equal_remainders_go_to_whoever_sorts_first() -> None:
    assert apportion(1, {NGINX: 5, HAPROXY: 5}) == {NGINX: 0, HAPROXY: 1}


@given(
    st.lists(st.tuples(st.sampled_from([7, 8, 9, None]), st.sets(st.integers(40_000, 40_050))), max_size=6),
    st.sets(st.integers(40_000, 40_050)),
)
def test_every_time_wait_is_somebodys_once_or_unknown(
    rows: list[tuple[int | None, set[int]]], waiting: set[int]
) -> None:
    live = set().union(*(ports for _, ports in rows))
    owners = owners_of(*(held(ports, cgroup_id) for cgroup_id, ports in rows), time_wait(waiting))

    assert sum(share.estimated_ports for share in owners.shares) + owners.unknown_ports == len(waiting - live)


# --- blocked ports ------------------------------------------------------------------------------------------------


def test_a_listener_blocks_its_port_whoever_else_is_on_it() -> None:
    owners = blockers_of(held([40_000], 7, state=LISTEN), held([40_000, 40_001], 8), held([40_002], 9, state=BOUND))

    assert shares(owners) == {"haproxy.service": (1, 0), "nginx.service": (1, 0), "redis.service": (1, 0)}


def test_connections_of_any_address_and_destination_block_and_their_time_waits_are_shared_out() -> None:
    owners = blockers_of(
        held(range(40_000, 40_008), 7, source="10.0.0.2", to=("0.0.0.0", 0)),
        time_wait(range(40_100, 40_104)),
        held([50_000], 8),
        blocked=port_bits(range(40_000, 40_999)),
    )

    assert shares(owners) == {"haproxy.service": (12, 4)}


def test_without_a_cgroup_hierarchy_users_block() -> None:
    assert shares(blockers_of(held([40_000], 7, uid=33), paths={})) == {"uid 33": (1, 0)}
