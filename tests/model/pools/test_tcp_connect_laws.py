"""How many connections toward a destination still succeed: laws of tcp_connect pools in any mix of sockets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.timestamps import PeerTimestamps
from ephmon.model.pools.tcp_connect import ConnectPools
from tests.model.facts import TAKEN_AT, make_ports, own
from tests.model.kernel_sockets import (
    LOOPBACK_DEVICE,
    PEERS,
    KernelSocket,
    ambiguous_ports,
    blocked_for_sure,
    estimate,
    may_lose_a_port,
    shown_by_inet_diag,
    sockets,
    successes,
    sysctls,
    takeable,
)

if TYPE_CHECKING:
    from ephmon.facts.snapshot import Sysctls
    from tests.model.kernel_sockets import Peer


@dataclass(frozen=True, slots=True)
class Mix:
    """Sockets of a namespace, and those of its ambiguous ports of which the kernel said that they are blocked."""

    facts: Sysctls
    sockets: list[KernelSocket]
    answered: set[int]
    asked: set[Peer]

    @property
    def known(self) -> dict[Peer, bool]:
        """What live connections show of the peers that were asked: as the model takes it, it is true of all sockets."""
        said = {peer: {one.has_timestamps for one in self.sockets if one.peer == peer} for peer in self.asked}
        return {peer: True in answers for peer, answers in said.items() if len(answers) == 1}

    @property
    def pools(self) -> ConnectPools:
        """What ephmon says of them."""
        ambiguous = ambiguous_ports(self.sockets, self.facts)
        ports = make_ports(
            self.facts,
            blocked=blocked_for_sure(self.sockets, self.facts) | ambiguous & self.answered,
            ambiguous=ambiguous,
        )
        timestamps = PeerTimestamps().with_answers({own(peer): [answer] for peer, answer in self.known.items()})
        tcp = replace(shown_by_inet_diag(self.sockets), timestamps=timestamps)
        return ConnectPools(OWN_NETNS, TAKEN_AT, self.facts, tcp, ports)


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    facts = draw(sysctls())
    mixed = draw(sockets(facts))
    blockers = {one.port for one in mixed if not one.got_its_port_from_connect}
    ambiguous = sorted(ambiguous_ports(mixed, facts) & blockers)
    answered = draw(st.sets(st.sampled_from(ambiguous))) if ambiguous else set()
    if draw(st.booleans()):
        mixed = [replace(one, has_timestamps=True) for one in mixed]
    return Mix(facts, mixed, answered, draw(st.sets(st.sampled_from(PEERS))))


@given(mixes())
def test_the_quantities_of_every_pool_are_what_their_definitions_say(mix: Mix) -> None:
    pools = mix.pools

    for peer in PEERS:
        said = asdict(pools.pool(own(peer)))
        expected = asdict(estimate(mix.sockets, mix.facts, peer, mix.answered, mix.known))
        assert {name: said[name] for name in expected} == expected
        assert (own(peer) in set(pools)) is (expected["held"] > 0)


@given(mixes(), st.sampled_from([0, LOOPBACK_DEVICE, 2, 3]))
def test_the_number_of_calls_that_succeed_lies_within_the_bounds(mix: Mix, device: int) -> None:
    """Whatever the kernel knows and inet_diag does not show, and whatever device the caller is bound to."""
    pools = mix.pools

    for peer in PEERS:
        pool, ports = pools.pool(own(peer)), takeable(mix.sockets, mix.facts, peer, device)
        count = len(ports)
        assert pool.remaining_min <= count - may_lose_a_port(mix.facts, ports)
        assert count <= pool.remaining_max
        assert not pool.exact or pool.remaining == count


@given(mixes())
def test_the_estimate_is_right_where_what_it_rests_on_is(mix: Mix) -> None:
    """It rests on the answers, on peers that speak timestamps, and on callers and sockets that are on no device."""
    plain = [replace(one, device=0, has_timestamps=mix.facts.tcp_timestamps != 0) for one in mix.sockets]
    # Without devices there is one socket for each 4-tuple.
    distinct = list({(one.port, one.source, one.peer): one for one in plain}.values())
    blockers = {one.port for one in distinct if not one.got_its_port_from_connect}
    pools = replace(mix, sockets=distinct, answered=blockers).pools

    for peer in PEERS:
        assert pools.pool(own(peer)).remaining == successes(distinct, mix.facts, peer)


@given(mixes())
def test_the_quantities_fit_together(mix: Mix) -> None:
    pools = mix.pools

    for pool in map(pools.pool, pools):
        assert pool.capacity == pool.usable - pool.blocked >= pool.in_use
        assert pool.in_use >= pool.time_wait >= pool.reusable >= 0
        assert pool.remaining == pool.capacity - pool.in_use + pool.reusable
        assert 0 <= pool.remaining_min <= pool.remaining <= pool.remaining_max <= pool.usable
        is_certain = pool.remaining_min == pool.remaining_max
        assert pool.exact is (is_certain and not pool.application_chooses_ports)
        assert pool.proven_utilisation >= pool.utilisation
        assert 0.0 <= pool.utilisation <= 1.0
        assert (pool.utilisation == 1.0) is (pool.remaining == 0)
        assert pool.in_use <= pool.held <= sum(pool.states.values())
    assert pools.overfull == 0


@given(mixes(), st.integers())
def test_the_order_of_the_rows_does_not_matter(mix: Mix, seed: int) -> None:
    shuffled = replace(mix, sockets=Random(seed).sample(mix.sockets, len(mix.sockets)))
    one, other = mix.pools, shuffled.pools

    assert {key: one.pool(key) for key in one} == {key: other.pool(key) for key in other}


@given(mixes().filter(lambda mix: bool(mix.sockets)))
def test_one_more_socket_never_leaves_more(mix: Mix) -> None:
    # The last socket may not change what is known of its peer.
    asked = {peer for peer in mix.asked if peer in mix.known and peer != mix.sockets[-1].peer}
    mix = replace(mix, asked=asked)
    before, after = replace(mix, sockets=mix.sockets[:-1]).pools, mix.pools

    for peer in PEERS:
        one, other = before.pool(own(peer)), after.pool(own(peer))
        assert other.remaining <= one.remaining
        assert other.remaining_min <= one.remaining_min
        assert other.remaining_max <= one.remaining_max


@given(mixes())
def test_pools_are_ranked_by_utilisation_then_by_ports_held(mix: Mix) -> None:
    pools = mix.pools
    ranked = map(pools.pool, sorted(pools, key=pools.lost_and_held, reverse=True))
    badness = [(pool.utilisation, pool.held) for pool in ranked]

    assert badness == sorted(badness, reverse=True)
    assert {key: pools.lost_and_held(key)[1] for key in pools} == {key: pools.pool(key).held for key in pools}
