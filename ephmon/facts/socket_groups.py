"""Facts: sockets that are alike but for their local port, as one group; and the groups of a dump, kept packed."""

from __future__ import annotations

import struct
from array import array
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import compress, count
from operator import or_
from typing import TYPE_CHECKING, NamedTuple, overload

from ephmon.facts.addresses import V6_BYTES, Endpoint, on_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class SocketGroup(NamedTuple):
    """All sockets of one dump that are alike but for their local port.

    Addresses are packed (4 or 16 bytes); an IPv4-mapped IPv6 address is given as its IPv4 address.
    """

    state: int
    """As in `TcpState`; an unknown number stays a number. UDP: ESTABLISHED is connected, CLOSE is not."""
    source: bytes
    destination: bytes
    """Unspecified (all zero) for a socket without a peer."""
    destination_port: int
    device: int = 0
    """Interface index the socket is bound to (SO_BINDTODEVICE), 0 if none."""
    minisock: bool = False
    """A TIME_WAIT structure: the state TIME_WAIT, or FIN_WAIT2 after the process let go of the socket."""
    bind_address_no_port: bool = False
    """IP_BIND_ADDRESS_NO_PORT is set on the socket, so bind(address, 0) did not choose its port."""
    dual_stack: bool = False
    """An AF_INET6 socket that is not known to be IPV6_V6ONLY.

    inet_diag shows that flag only for listening, bound and unconnected sockets.
    """


class ConnectKey(NamedTuple):
    """A connection but for its local port: what connect() looks for a free port for. Addresses are packed."""

    source: bytes
    destination: bytes
    destination_port: int

    @property
    def peer(self) -> Endpoint:
        """The other end."""
        return Endpoint(self.destination, self.destination_port)


class ConnectKeys(Sequence[ConnectKey]):
    """Distinct keys in the order in which they were met, kept packed: there may be as many as sockets.

    Args:
        index: The index of each key, packed as `_CONNECT_KEY`, in ascending order of the indices.
    """

    def __init__(self, index: Mapping[tuple[bytes], int]) -> None:
        self._index = index
        self._packed = [packed for (packed,) in index]

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> ConnectKey: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ConnectKey]: ...
    def __getitem__(self, index: int | slice) -> ConnectKey | Sequence[ConnectKey]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        length, port, source, destination = _CONNECT_KEY.unpack(self._packed[index])
        return ConnectKey(source[:length], destination[:length], port)

    def find(self, key: ConnectKey) -> int | None:
        """Return the index of a key, None if no socket has it."""
        source, destination, port = key
        return self._index.get((_CONNECT_KEY.pack(len(source), port, source, destination),))


class SocketGroups(Sequence[SocketGroup]):
    """The groups of one dump, kept packed: there may be as many as sockets, and few of them are looked at.

    `PACKED` is the layout of one: an unused byte, the state, 1 for a minisock, flags, the key as `_CONNECT_KEY`, and
    the device. That is how struct inet_diag_msg lays out the same fields, so that
    `ephmon.kernel.netlink.inet_diag` can cut groups out of the kernel's records without running code for each.
    """

    # The unused byte is where the record has its address family.
    PACKED = struct.Struct("=xBBB36sI")
    NO_PORT, DUAL_STACK = 1, 2
    """The flags: IP_BIND_ADDRESS_NO_PORT, and `SocketGroup.dual_stack`."""

    def __init__(self, packed: bytes | bytearray) -> None:
        self._packed = packed

    @classmethod
    def of(cls, groups: Iterable[SocketGroup]) -> SocketGroups:
        """Pack some groups."""
        return cls(b"".join(map(_pack, groups)))

    def __len__(self) -> int:
        return len(self._packed) // self.PACKED.size

    @overload
    def __getitem__(self, index: int) -> SocketGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SocketGroup]: ...
    def __getitem__(self, index: int | slice) -> SocketGroup | Sequence[SocketGroup]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # counts a negative one from the end, and raises IndexError
        state, minisock, flags, key, device = self.PACKED.unpack_from(self._packed, index * self.PACKED.size)
        length, port, source, destination = _CONNECT_KEY.unpack(key)
        # By position, in the order of the fields: there may be as many groups as sockets.
        return SocketGroup(
            state,
            source[:length],
            destination[:length],
            port,
            device,
            minisock == 1,
            flags & self.NO_PORT != 0,
            flags & self.DUAL_STACK != 0,
        )

    @cached_property
    def states(self) -> bytes:
        """The state of each group."""
        return bytes(self._packed[1 :: self.PACKED.size])

    @cached_property
    def no_port_flags(self) -> bytes:
        """1 for each group whose sockets carry IP_BIND_ADDRESS_NO_PORT, else 0."""
        return bytes(self._packed[3 :: self.PACKED.size]).translate(_IS_ODD)

    @cached_property
    def on_devices(self) -> Sequence[int]:
        """The indices of the groups whose sockets are bound to a device."""
        return [index for index, device in enumerate(self._devices) if device] if any(self._devices) else []

    @property
    def devices(self) -> frozenset[int]:
        """The interface indices of the devices that sockets are bound to."""
        return frozenset(self._devices) - {0}

    @cached_property
    def _devices(self) -> Sequence[int]:
        return memoryview(self._packed).cast("I")[10 :: self.PACKED.size // 4].tolist()

    @cached_property
    def time_waits(self) -> Sequence[int]:
        """The indices of the groups in the state TIME_WAIT; FIN_WAIT2 is not among them."""
        is_time_wait = self.states.translate(_IS_TIME_WAIT)
        return list(compress(count(), is_time_wait)) if any(is_time_wait) else []

    @cached_property
    def time_waits_on_loopback(self) -> Sequence[int]:
        """Those of `time_waits` that the kernel takes for connections on loopback."""
        # There may be as many groups as sockets. So only those are unpacked that may be on loopback: with 127 as the
        # first byte of an address, of IPv6, or on a device.
        size, packed = self.PACKED.size, self._packed
        may_be = map(or_, packed[8::size].translate(_IS_127), packed[24::size].translate(_IS_127))
        may_be = map(or_, may_be, packed[4::size].translate(_IS_V6))
        candidates = compress(count(), map(or_, may_be, map(bool, self._devices)))
        found = ((index, self[index]) for index in sorted(set(self.time_waits).intersection(candidates)))
        return [index for index, one in found if on_loopback(one.source, one.destination, device=one.device)]

    @property
    def connect_keys(self) -> ConnectKeys:
        """The distinct keys of the groups."""
        return self._connect_keys[0]

    @property
    def connect_key_of(self) -> array[int]:
        """Index into `connect_keys` of each group (typecode "I")."""
        return self._connect_keys[1]

    @cached_property
    def _connect_keys(self) -> tuple[ConnectKeys, array[int]]:
        index: defaultdict[tuple[bytes], int] = defaultdict(count().__next__)
        keys: Iterator[tuple[bytes]] = struct.Struct("=4x36s4x").iter_unpack(self._packed)
        connect_key_of = array("I", map(index.__getitem__, keys))
        index.default_factory = None  # from here on a key that is looked up and not there must not be added
        return ConnectKeys(index), connect_key_of


_CONNECT_KEY = struct.Struct(">BxH16s16s")
"""The length of the addresses, a zero, the destination port, source and destination; zeros after 4-byte addresses."""
_IS_ODD = bytes([0, 1] * 128)
_IS_127 = bytes(value == 127 for value in range(256))
_IS_V6 = bytes(value == V6_BYTES for value in range(256))
_TIME_WAIT = 6  # as in `TcpState`, which this module is below of
_IS_TIME_WAIT = bytes(state == _TIME_WAIT for state in range(256))


def _pack(group: SocketGroup) -> bytes:
    flags = group.bind_address_no_port * SocketGroups.NO_PORT | group.dual_stack * SocketGroups.DUAL_STACK
    key = _CONNECT_KEY.pack(len(group.source), group.destination_port, group.source, group.destination)
    return SocketGroups.PACKED.pack(group.state, group.minisock, flags, key, group.device)
