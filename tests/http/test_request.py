from __future__ import annotations

import dataclasses

import pytest

from ephmon.http.request import Request, parse_request


def get(path: str, *, host: str = "h") -> Request:
    return Request(method="GET", path=path, host=host, authorization="", accept="", accept_encoding="", has_body=False)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (
            b"GET /metrics?a=/b HTTP/1.1\r\nHost: h\r\naccept: a\r\nAccept: b\r\nAccept-Encoding: gzip\r\n\r\n",
            dataclasses.replace(get("/metrics"), accept="a,b", accept_encoding="gzip"),
        ),
        (b"GET / HTTP/1.0\r\n\r\n", get("/", host="")),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\n\r\n",
            dataclasses.replace(get("/"), authorization="Bearer x"),
        ),
        (b"GET metrics HTTP/1.1\r\nHost: h\r\n\r\n", get("metrics")),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", dataclasses.replace(get("*"), method="OPTIONS")),
        (b"HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", dataclasses.replace(get("/"), method="HEAD")),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n", dataclasses.replace(get("/"), has_body=True)),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            dataclasses.replace(get("/"), has_body=True),
        ),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", None),
        (b"GET /\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", None),
        (b"\x16\x03\x01\x02\r\n\r\n", None),
        (b"\r\n\r\n", None),
    ],
)
def test_a_request_head_is_understood_or_refused(head: bytes, expected: Request | None) -> None:
    assert parse_request(head) == expected


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("web1", "web1"),
        ("Web1.Example.NET.:19100", "web1.example.net"),
        ("127.0.0.1:19100", "127.0.0.1"),
        ("127.0.0.1:", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[2001:DB8::1]:19100", "2001:db8::1"),
        ("my_host-1", "my_host-1"),
    ],
)
def test_the_host_is_taken_without_its_port_and_in_one_form(value: str, host: str) -> None:
    request = parse_request(f"GET / HTTP/1.1\r\nHost: {value}\r\n\r\n".encode())

    assert request is not None
    assert request.host == host


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Host: \r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nhOST: b\r\n",
        "Host: a,b\r\n",
        "Host: a b\r\n",
        "Host: a\r\n b\r\n",
        "Host: a:port\r\n",
        "Host: user@a\r\n",
        "Host: ::1\r\n",
        "Host: [::1\r\n",
        "Host: [fe80::1%eth0]\r\n",
        "Host: http://a\r\n",
        "Host: a/b\r\n",
        "Host: \xe9\r\n",
    ],
)
def test_a_request_of_http_1_1_has_exactly_one_valid_host(headers: str) -> None:
    assert parse_request(f"GET / HTTP/1.1\r\n{headers}\r\n".encode("latin-1")) is None


def test_a_request_of_http_1_0_may_name_no_host_but_not_two() -> None:
    assert parse_request(b"GET / HTTP/1.0\r\n\r\n") == get("/", host="")
    assert parse_request(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n") == get("/", host="a")
    assert parse_request(b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n") is None


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        ("http://target:1/-/ready?x", "target", "/-/ready"),
        ("HTTPS://Target/metrics", "target", "/metrics"),
        ("http://target", "target", "/"),
        ("http://target?a=/b", "target", "/"),
        ("http://[::1]:1/metrics", "::1", "/metrics"),
    ],
)
def test_the_host_of_a_whole_url_counts_and_not_that_of_the_header(target: str, host: str, path: str) -> None:
    assert parse_request(f"GET {target} HTTP/1.1\r\nHost: header\r\n\r\n".encode()) == get(path, host=host)


@pytest.mark.parametrize(
    "target",
    [
        "http:///metrics",
        "http://127.0.0.1@evil.example/metrics",
        "http://evil.example#127.0.0.1/metrics",
        "http://evil.example\\@127.0.0.1/metrics",
        "ftp://127.0.0.1/metrics",
        "http://a b/",
    ],
)
def test_a_url_that_hides_its_host_is_refused(target: str) -> None:
    assert parse_request(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()) is None


def test_a_whole_url_does_not_replace_the_header() -> None:
    assert parse_request(b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n") is None
