from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ephmon.http.host_names import OwnNames, is_address, is_listed, own_names

if TYPE_CHECKING:
    from pathlib import Path

HOSTS = """\
127.0.0.1 localhost ads.example
127.0.1.1	Web1.example.net. web1 # the full name, as Debian writes it
10.0.0.2 db1.example.net db1
#10.0.0.3 web1 commented.example
::1 web1 localhost strangers.example
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "10.0.0.1", "::1", "2001:db8::1", "::ffff:127.0.0.1"])
def test_an_address_is_told_from_a_name(host: str) -> None:
    assert is_address(host)


@pytest.mark.parametrize("host", ["", "localhost", "evil.example", "127.0.0.1.evil.example", "127.1", "0x7f000001"])
def test_what_only_looks_like_an_address_is_a_name(host: str) -> None:
    assert not is_address(host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("mon.example.org", True),
        ("web1.example.net", True),
        ("a.web1.example.net", True),
        ("example.net", False),
        ("evilexample.net", False),
        ("web1.example.net.evil.example", False),
        ("sub.mon.example.org", False),
        ("*.example.net", True),
    ],
)
def test_a_star_stands_for_the_names_below_a_domain_alone(host: str, expected: bool) -> None:
    assert is_listed(host, ("mon.example.org", "*.example.net")) is expected


def test_the_names_of_this_host_are_its_hostname_and_what_the_hosts_file_calls_it() -> None:
    assert own_names("web1", HOSTS) == {"web1", "web1.example.net"}
    assert own_names("Web1.example.net", "") == {"web1.example.net", "web1"}
    assert own_names("web9", HOSTS) == {"web9"}


def test_a_host_that_is_called_localhost_takes_no_names_from_the_hosts_file() -> None:
    assert own_names("localhost", HOSTS) == {"localhost"}


def test_the_names_of_this_host_change_with_its_hostname_and_its_hosts_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    hostnames = ["one"]
    names = OwnNames(file, lambda: hostnames[0])
    assert names.current() == {"one"}

    file.write_text("10.0.0.1 one.example one\n", encoding="utf-8")
    assert names.current() == {"one", "one.example"}

    hostnames[0] = "two"
    assert names.current() == {"two"}

    file.write_bytes(b"10.0.0.1 two.example \xff two\n")
    assert {"two", "two.example"} <= names.current()
