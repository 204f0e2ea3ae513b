"""`ephmon check-config --pool`: which thresholds a pool gets, and what gave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from tests.commands.answers import answer

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
# The narrow ones come first.
pools:
  ignore_destinations: ["10.0.0.9:80", "192.0.2.0/24"]
thresholds:
  warning: {utilisation: 0.6, for: 30s}
  overrides:
    - destination: 10.0.0.0/8
      destination_port: 5432
      critical: {utilisation: 0.8}
    # Not by the way of this.
    - {source: "2001:db8::/32", kind: tcp_bind, warning: {utilisation: 0.5}, critical: {utilisation: 0.55}}
    - kind: udp_connect
"""
GENERAL = {
    "warning": {"utilisation": 0.6, "for": "30s", "clear": 0.55},
    "critical": {"utilisation": 0.9, "for": "0s", "clear": 0.85},
}


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


NONE_MATCHES = "No override matches: these are the general thresholds."
FIRST = "The first override that matches is thresholds.overrides"
IGNORED = "But pools.ignore_destinations excludes this pool."
POOLS = {
    "tcp_connect,10.0.0.1,10.0.0.9:5432": (
        [f"{FIRST}[0] (CONFIG:7). Its warning is the general one."],
        {**GENERAL, "critical": {"utilisation": 0.8, "for": "0s", "clear": 0.75}},
    ),
    "tcp_connect,10.0.0.1,10.0.0.9:443": ([NONE_MATCHES], GENERAL),
    "tcp_connect,10.0.0.1,10.0.0.9:80": ([NONE_MATCHES, IGNORED], GENERAL),
    "tcp_connect,192.0.2.1,192.0.2.9:443": ([NONE_MATCHES, IGNORED], GENERAL),
    "tcp_bind,2001:db8::1": (
        [f"{FIRST}[1] (CONFIG:11)."],
        {
            "warning": {"utilisation": 0.5, "for": "30s", "clear": 0.45},
            "critical": {"utilisation": 0.55, "for": "0s", "clear": 0.5},
        },
    ),
    "tcp_bind,[2001:DB8::1]": (
        [f"{FIRST}[1] (CONFIG:11)."],
        {
            "warning": {"utilisation": 0.5, "for": "30s", "clear": 0.45},
            "critical": {"utilisation": 0.55, "for": "0s", "clear": 0.5},
        },
    ),
    "tcp_bind,10.0.0.1": ([NONE_MATCHES], GENERAL),
    "udp_bind,2001:db8::1": ([NONE_MATCHES], GENERAL),
    "udp_connect,::": ([f"{FIRST}[2] (CONFIG:12). Its warning and critical are the general ones."], GENERAL),
}


@pytest.mark.parametrize(("pool", "sentences", "thresholds"), [(pool, *POOLS[pool]) for pool in POOLS])
def test_it_prints_the_thresholds_of_a_pool_and_what_gave_them(
    config: Path, pool: str, sentences: list[str], thresholds: dict[str, object]
) -> None:
    got = answer("check-config", "--pool", pool, str(config))
    comments = [line.removeprefix("# ") for line in got.out.splitlines() if line.startswith("# ")]

    assert (got.status, got.err) == (0, "")
    assert comments == [sentence.replace("CONFIG", str(config)) for sentence in sentences]
    assert yaml.safe_load(got.out) == thresholds


def test_the_file_may_be_given_as_the_option(config: Path) -> None:
    words = ["--pool", "tcp_connect,10.0.0.1,10.0.0.9:5432"]

    assert answer("check-config", *words, "--config", str(config)) == answer("check-config", *words, str(config))


NO_KIND = "is not a kind of pool; use tcp_connect, tcp_bind, udp_connect, udp_bind"
MISTAKES = {
    "tcp_conect,10.0.0.1,10.0.0.9:80": f"tcp_conect {NO_KIND}",
    "": f"'' {NO_KIND}",
    "tcp_connect,10.0.0.1": "a tcp_connect pool needs other addresses; use tcp_connect,SOURCE,DESTINATION:PORT",
    "tcp_connect,10.0.0.1,10.0.0.9": "10.0.0.9 has no port; use ADDRESS:PORT",
    "tcp_connect,10.0.0.1,[::1]:80": "10.0.0.1 and ::1 belong to different families",
    "tcp_connect,10.0.0.1:5,10.0.0.9:80": "10.0.0.1:5: a port is not allowed here; use the address alone",
    "tcp_bind,10.0.0.1,10.0.0.9:80": "a tcp_bind pool needs other addresses; use tcp_bind,SOURCE",
    "udp_bind": "a udp_bind pool needs other addresses; use udp_bind,SOURCE",
    "udp_connect,10.0.0.1": "a udp_connect pool belongs to a family, not to 10.0.0.1; use 0.0.0.0 or :: as its source",
}


@pytest.mark.parametrize(("pool", "sentence"), MISTAKES.items(), ids=MISTAKES)
def test_what_is_no_pool_is_refused_with_what_to_write(config: Path, pool: str, sentence: str) -> None:
    assert answer("check-config", "--pool", pool, str(config)) == (
        2,
        "",
        f"ephmon: argument --pool: {sentence}; see `ephmon check-config --help`.\n",
    )
