"""What is said of a pool beside its numbers, and that nothing is said where they say it all."""

from __future__ import annotations

from ephmon.outputs.text import headroom
from ephmon.outputs.text.pool_remarks import pool_remarks
from tests.builders import make_pool

STATES = {"established": 100, "time_wait": 7}


def test_numbers_that_say_it_all_have_no_remark() -> None:
    assert pool_remarks(make_pool(states=STATES, named=89, peer_timestamps=True, reusable=7)) == ()
    assert len(headroom.render(make_pool()).splitlines()) == 3


def test_ports_that_the_application_names() -> None:
    pool = make_pool(states=STATES, named=100, remaining=900, remaining_min=900, remaining_max=900, exact=False)

    (said,) = pool_remarks(pool)
    assert said == (
        "100 of the 100 live sockets of this pool named their port in bind(). "
        "The application's own list of ports decides how many more it opens. "
        "What is left of the kernel's range, 900 ports, is for sockets that leave the port to the kernel."
    )
    assert "(for sockets that leave the port to the kernel)" in headroom.render(pool)


def test_sockets_on_devices() -> None:
    (said,) = pool_remarks(make_pool(remaining=10, only_on_devices=190))
    assert said == (
        "190 of the ports in use are held by sockets that are bound to a device (SO_BINDTODEVICE). "
        "They stop only sockets that are bound to the same device. "
        "For a socket that is bound to no device, 200 ports are left."
    )


def test_timestamps_that_nobody_has_seen() -> None:
    (said,) = pool_remarks(make_pool(time_wait=30, reusable=7, reusable_unproven=7))
    assert said == (
        "7 ports in TIME_WAIT are reusable only if 10.0.0.9 uses TCP timestamps, which no live connection shows. "
        "`ss -tin dst 10.0.0.9:443` prints `ts` for each that uses them."
    )


def test_a_peer_without_timestamps() -> None:
    assert pool_remarks(make_pool(time_wait=30, peer_timestamps=False)) == (
        "Live connections to 10.0.0.9 use no TCP timestamps. So the kernel reuses none of the 30 ports in TIME_WAIT.",
    )
    assert pool_remarks(make_pool(time_wait=0, peer_timestamps=False)) == ()
