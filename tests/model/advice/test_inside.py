"""Advice on another namespace says where its commands have to be run."""

from __future__ import annotations

from dataclasses import replace

from ephmon.model.advice.causes import Advice
from ephmon.model.advice.inside import inside
from tests.builders import make_namespace_report

ADVICE = Advice(cause="It fills.", steps=("Widen it: `sysctl -w a=1`.", "Use keep-alive: `keepalive 64;`."))


def test_a_command_that_acts_on_a_namespace_says_how_to_enter_it_and_nothing_else_does() -> None:
    blue = replace(make_namespace_report(netns="blue"), mount="blue")

    assert inside(ADVICE, blue).steps == (
        "Widen it: `sysctl -w a=1`, in a shell inside the namespace, which `nsenter --net=/run/netns/blue` opens.",
        "Use keep-alive: `keepalive 64;`.",
    )


def test_a_namespace_without_a_name_is_entered_by_one_of_its_processes() -> None:
    (step, _) = inside(ADVICE, make_namespace_report(netns="docker/0123456789ab", inode=4026532301)).steps

    assert '`nsenter --net -t "$(lsns -no PID 4026532301 | head -n 1)"`' in step


def test_advice_on_our_own_namespace_is_as_it_was() -> None:
    assert inside(ADVICE, make_namespace_report()) is ADVICE
