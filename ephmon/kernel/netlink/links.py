"""What kind a network device is: whether sockets that are bound to it have their ports in a VRF.

TCP sockets of a VRF have bind buckets of their own, whatever their addresses are (inet_sk_bound_l3mdev(),
include/net/inet_sock.h). They are those bound to the device of the VRF or to a device that is in it.

Source: man 7 rtnetlink; RTM_GETLINK of one index, IFLA_LINKINFO (include/uapi/linux/if_link.h).
"""

from __future__ import annotations

import struct

from ephmon.errors import KernelError
from ephmon.kernel.netlink.attributes import attributes
from ephmon.kernel.netlink.route import ask
from ephmon.kernel.netlink.sock_diag import HEADER, NLM_F_REQUEST

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND = 18, 1, 4
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: without the flags
_VRF = b"vrf"


def may_be_in_vrf(index: int) -> bool:
    """Tell whether a device is a VRF or in one; True too if the kernel does not answer, because it may be."""
    payload = _IFINFOMSG.pack(0, 0, index, 0, 0)
    request = HEADER.pack(HEADER.size + len(payload), _RTM_GETLINK, NLM_F_REQUEST, 1, 0) + payload
    try:
        return parse_link(ask(request))
    except KernelError:
        return True


def parse_link(reply: bytes) -> bool:
    """Tell of the kernel's answer whether the device is a VRF or in one; a device that has gone has no sockets in one.

    Raises:
        MalformedReplyError: An attribute claims to be longer than what is left.
    """
    if len(reply) < HEADER.size + _IFINFOMSG.size or HEADER.unpack_from(reply)[1] != _RTM_NEWLINK:
        return False
    for kind, start, end in attributes(reply, HEADER.size + _IFINFOMSG.size, len(reply)):
        if kind & _TYPE_MASK == _IFLA_LINKINFO:
            return any(
                inner & _TYPE_MASK in (_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND) and reply[at:to].rstrip(b"\0") == _VRF
                for inner, at, to in attributes(reply, start, end)
            )
    return False
