"""What a user writes: YAML, the configuration, addresses and URLs. Secrets are never repeated."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from urllib.parse import urlsplit

from ephmon.config.endpoint import (
    format_endpoint,
    format_network_endpoint,
    parse_endpoint,
    parse_lone_address,
    parse_network_endpoint,
    parse_port,
)
from ephmon.config.scalars import BASE_URL, SECRET_URL
from ephmon.config.settings import Config, NotifyConfig, describe, parse
from ephmon.config.yaml_document import (
    MAX_DEPTH,
    MAX_NODES,
    MappingNode,
    Node,
    RefusedNode,
    ScalarNode,
    SequenceNode,
    TextTree,
    compose,
    dump,
)
from ephmon.delivery.post import _request_head, parse_target
from ephmon.errors import ConfigError
from tests.fuzz.target import Target, answer, check_message, files

ROOT = Path(__file__).parents[2]
SECRET = "5ecretT0ken"
_KEYS_OF_SECRETS = (
    "notify:\n  webhook:\n    url:",
    "notify:\n  webhook:\n    url_file:",
    "notify:\n  alertmanager:\n    urls:\n      -",
    "http:\n  token_file:",
    "tls:\n  certificate: /cert.pem\n  key:",
)
_FIRST_QUOTED = 64
_SECRET_VALUES = (
    b"https://hooks.example.net/|?x=y",
    b"https://user:|@hooks.example.net/services/",
    b"hooks.example.net/|",
    b"https://hooks.example.net/| #x",
    b"&|",
    b"{url: |}",
    b"-----BEGIN PRIVATE KEY----- |",
    b"/run/secrets/|",
)
"""| stands for the secret."""
_NAME = "/etc/ephmon/config.yaml"
_TARGET = re.compile(rb"POST /[!-~]* HTTP/1\.1\r\n(?:[A-Za-z-]+: [ -~]*\r\n)+\r\n")


def check_yaml(data: bytes) -> None:
    """Compose a text, write the tree as YAML, and compose the same tree from that."""
    document = compose(data.decode("utf-8", "replace"))
    for problem in document.problems:
        check_message(problem.message)
        assert problem.line >= 1
    if document.root is None or document.problems:
        return
    tree = _tree(document.root)
    again = compose(dump(tree))
    assert again.problems == ()
    assert again.root is not None
    assert _tree(again.root) == tree


def _tree(node: Node, depth: int = 0) -> TextTree:
    """Return a node without lines and styles; keys that are no text, and repeated ones, are left out."""
    assert depth <= MAX_DEPTH
    match node:
        case ScalarNode():
            node.text.encode()  # which half a character refuses
            return node.text
        case SequenceNode():
            assert len(node.items) <= MAX_NODES
            return [_tree(item, depth + 1) for item in node.items]
        case MappingNode():
            pairs = ((key, value) for key, value in node.entries if isinstance(key, ScalarNode))
            return {key.text: _tree(value, depth + 1) for key, value in pairs}
        case RefusedNode():
            raise AssertionError("something was refused, and no problem says so")


def check_config(data: bytes) -> None:
    """Read a configuration, describe it, and read the same from that."""
    text = data.decode("utf-8", "replace")
    try:
        config = parse(text, _NAME)
    except ConfigError as error:
        for line in str(error).split("\n"):
            check_message(line)
            assert line.startswith(f"{_NAME}:")
        return
    public = NotifyConfig(labels=config.notify.labels, source_ports=config.notify.source_ports)
    without_secrets = replace(config, notify=public)
    assert parse(describe(without_secrets), _NAME) == without_secrets
    assert config.rules.thresholds == config.thresholds


def check_secrets(data: bytes) -> None:
    """Write a secret amid the input as the value of a key that holds one: no error repeats it.

    The first byte chooses the key, and whether the value is quoted.
    """
    choice = data[0] if data else 0
    before, _, after = data[1:].decode("utf-8", "replace").partition("|")
    value = f"{before}{SECRET}{after}"
    written = dump(value).rstrip() if choice >= _FIRST_QUOTED else " ".join(value.split())
    described = _described_or_refused(f"{_KEYS_OF_SECRETS[choice % len(_KEYS_OF_SECRETS)]} {written}\n")
    assert SECRET not in described, described


def _described_or_refused(text: str) -> str:
    """Return what is said of a configuration, less what may be shown: paths of files, and hosts of Alertmanagers."""
    try:
        config = parse(text, _NAME)
    except ConfigError as error:
        return str(error)
    notify = config.notify
    if any(SECRET.lower() in (urlsplit(url).hostname or "") for url in notify.alertmanager.urls):
        notify = replace(notify, alertmanager=NotifyConfig().alertmanager)
    notify = replace(notify, webhook=replace(notify.webhook, url_file=""))
    return describe(replace(config, notify=notify, http=Config().http, tls=Config().tls))


def check_address(data: bytes) -> None:
    """Read an input as an address with and without a port, as a network and as a port, and write it out again."""
    text = data.decode("utf-8", "replace")
    endpoint = answer(ValueError, parse_endpoint, text)
    if endpoint is not None:
        assert parse_endpoint(format_endpoint(*endpoint)) == endpoint
        assert isinstance(endpoint[0], IPv4Address | IPv6Address)
    network = answer(ValueError, parse_network_endpoint, text)
    if network is not None:
        assert parse_network_endpoint(format_network_endpoint(*network)) == network
    address = answer(ValueError, parse_lone_address, text)
    if address is not None:
        assert parse_lone_address(str(address)) == address
    port = answer(ValueError, parse_port, text)
    assert port is None or 1 <= port < 1 << 16


def check_url(data: bytes) -> None:
    """Make a request of every URL that the configuration accepts: one head, whatever the URL has in it."""
    text = data.decode("utf-8", "replace")
    for scalar, path in ((BASE_URL, "/api/v2/alerts"), (SECRET_URL, "")):
        url = answer(ValueError, scalar.parse, text)
        if url:
            target = parse_target(url, path)
            assert _TARGET.fullmatch(_request_head(target, 3)), "another head than one"
            assert 0 < target.port < 1 << 16
            assert target.host
            shown = f"{target}{target!r}"
            assert target.authorization == "" or target.authorization not in shown


def _examples() -> list[bytes]:
    """Return the example, whole and in its sections, and configurations with a mistake."""
    example = (ROOT / "config.example.yaml").read_bytes()
    sections = re.split(rb"\n(?=[a-z]+:)", example)
    return [*sections, *files(ROOT / "tests" / "config" / "bad", "*.yaml")]


TARGETS = (
    Target(
        name="yaml",
        parsers=("config.yaml_document.compose",),
        check=check_yaml,
        seeds=_examples,
        max_bytes=512,
        executions=1_500,
    ),
    Target(
        name="config",
        parsers=("config.settings.parse",),
        check=check_config,
        seeds=_examples,
        max_bytes=1024,
        executions=1_000,
    ),
    Target(
        name="secrets",
        parsers=("config.settings.parse", "config.settings.describe"),
        check=check_secrets,
        seeds=lambda: [bytes([key]) + value for key in range(len(_KEYS_OF_SECRETS)) for value in _SECRET_VALUES],
        max_bytes=96,
        executions=1_200,
    ),
    Target(
        name="address",
        parsers=tuple(
            f"config.endpoint.{name}"
            for name in ("parse_endpoint", "parse_network_endpoint", "parse_lone_address", "parse_port")
        ),
        check=check_address,
        seeds=lambda: [
            b"10.0.0.1:443",
            b"[2001:db8::1]:443",
            b"2001:db8::/32",
            b"10.0.0.0/8:80",
            b"[::ffff:10.0.0.0]/104",
            b"fe80::1%eth0",
            b"*:80",
            b"localhost:19100",
            b"65535",
        ],
        max_bytes=128,
        executions=10_000,
    ),
    Target(
        name="url",
        parsers=("config.scalars.BASE_URL", "config.scalars.SECRET_URL", "delivery.post.parse_target"),
        check=check_url,
        seeds=lambda: [
            b"http://127.0.0.1:9093",
            b"https://user:pass%20word@alerts.example.net/alertmanager/",
            b"https://[2001:db8::1]:8443/hook?key=5ecret&x=%20",
            b"http://alerts.example.net.:80/#x",
        ],
        max_bytes=256,
        executions=10_000,
    ),
)
