"""The configuration is what the user wrote, else the defaults, else a sentence for each mistake."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ephmon.config.scalars import RESERVED_LABELS
from ephmon.config.settings import (
    LISTEN,
    AlertmanagerConfig,
    AlertsConfig,
    BackendChoice,
    Config,
    ExhaustionsConfig,
    HttpConfig,
    IncidentsConfig,
    ListenAddress,
    LogConfig,
    LogFormat,
    LogLevel,
    NotifyConfig,
    PollConfig,
    ProbeChoice,
    Switch,
    TlsConfig,
    WebhookConfig,
    describe,
    load,
    parse,
)
from ephmon.errors import ConfigError
from ephmon.facts.snapshot import PortRange
from ephmon.model.alerting.thresholds import Threshold, ThresholdOverride, Thresholds
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.rules import DestinationPattern, ListingRules, Rules

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
BAD = Path(__file__).parent / "bad"


def _refusal(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        parse(text, "x")
    return str(refusal.value).splitlines()


# --- defaults -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_these() -> None:
    """The contract with the user, written out once more so that no default changes by accident."""
    assert (
        describe(Config())
        == """\
listen: 127.0.0.1:19100
poll:
  interval: 5s
  urgent_interval: 1s
  deadline: 5s
  cpu_budget: 0.02
  urgent_cpu_budget: 0.25
  backend: auto
  probe: auto
namespaces:
  watch: own
  ignore: []
pools:
  top: 50
  min_in_use: 10
  peak_window: 1m
  ignore_destinations: []
thresholds:
  warning:
    utilisation: 0.7
    for: 10s
    clear: 0.65
  critical:
    utilisation: 0.9
    for: 0s
    clear: 0.85
  overrides: []
alerts:
  max_active: 50
  connect_search_share: 0.05
exhaustions:
  enabled: auto
  top: 100
incidents:
  directory: ""
  max_files: 20
  max_mib: 20
notify:
  labels: {}
  source_ports: 19102-19117
  alertmanager:
    urls: []
  webhook:
    url: ""
    url_file: ""
log:
  level: info
  format: auto
http:
  hosts: []
  token_file: ""
tls:
  certificate: ""
  key: ""
  client_ca: ""
"""
    )


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "{}", "poll:\nnotify:\n  webhook:\nthresholds:\n  warning:\n", "log: {}"]
)
def test_what_is_left_out_keeps_its_default(text: str) -> None:
    assert parse(text, "x") == Config()


def test_the_example_holds_the_defaults() -> None:
    assert load(ROOT / "config.example.yaml") == Config()


def test_each_key_of_the_example_has_a_line_of_meaning() -> None:
    lines = (ROOT / "config.example.yaml").read_text(encoding="utf-8").splitlines()
    bare = [
        line.strip()
        for before, line in pairwise(lines)
        if re.match(r"\s*\w+: \S", line) and not before.lstrip().startswith("#")
    ]

    assert bare == []


def test_the_overrides_that_the_example_shows_can_be_used() -> None:
    """Those that stand in its comments."""
    text = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
    shown = "".join(f"{line[3:]}\n" for line in text.splitlines() if line.startswith("  #   "))

    overrides = parse(f"thresholds:\n{shown}", "x").thresholds.overrides

    assert [override.destination_port for override in overrides] == [5432, None]


# --- what is read -------------------------------------------------------------------------------------------------


def test_every_key_is_read() -> None:
    text = """\
listen: "[::1]:9100"
poll: {interval: 1m, urgent_interval: 500ms, deadline: 1.5s, cpu_budget: 1, urgent_cpu_budget: 5e-1, backend: procfs,
       probe: never}
pools:
  top: 1e3
  min_in_use: 0
  peak_window: 1h
  ignore_destinations: [10.0.0.0/8, "10.0.0.9:0443", "2001:db8::/32", "[::1]:80", "::ffff:192.0.2.0/120"]
thresholds:
  warning: {utilisation: 0.5, for: 0s, clear: 0.25}
  critical: {utilisation: 1, for: 2m, clear: 0.5}
  overrides:
    - {kind: udp_bind, source: 10.0.0.0/8, warning: {utilisation: .3, for: 1s, clear: .2}}
alerts: {max_active: 1, connect_search_share: 0.25}
exhaustions: {enabled: off, top: 2}
incidents: {directory: /var/lib/ephmon, max_files: 3, max_mib: 4}
notify:
  labels: {team: off, shift: 1:30, region: "é"}
  source_ports: 1000-1000
  alertmanager: {urls: ["http://127.0.0.1:9093", "https://user:pass@am.example/prefix"]}
  webhook: {url: "https://example.net/hook?token=a"}
log: {level: debug, format: json}
http: {hosts: [Mon.Example.net., "*.example.org", 1a], token_file: /t}
tls: {certificate: /c.pem, key: /k.pem, client_ca: /a.pem}
"""
    config = parse(text, "x")

    assert config == Config(
        listen=ListenAddress(host="::1", port=9100),
        poll=PollConfig(
            interval_seconds=60.0,
            urgent_interval_seconds=0.5,
            deadline_seconds=1.5,
            cpu_budget=1.0,
            urgent_cpu_budget=0.5,
            backend=BackendChoice.PROCFS,
            probe=ProbeChoice.NEVER,
        ),
        listing=ListingRules(
            top=1000,
            min_in_use=0,
            peak_window_seconds=3600.0,
            ignore_destinations=(
                DestinationPattern(network=IPv4Network("10.0.0.0/8")),
                DestinationPattern(network=IPv4Network("10.0.0.9/32"), port=443),
                DestinationPattern(network=IPv6Network("2001:db8::/32")),
                DestinationPattern(network=IPv6Network("::1/128"), port=80),
                DestinationPattern(network=IPv4Network("192.0.2.0/24")),
            ),
        ),
        thresholds=Thresholds(
            warning=Threshold(utilisation=0.5, for_seconds=0.0, clear=0.25),
            critical=Threshold(utilisation=1.0, for_seconds=120.0, clear=0.5),
            overrides=(
                ThresholdOverride(
                    kind=PoolKind.UDP_BIND,
                    source=IPv4Network("10.0.0.0/8"),
                    warning=Threshold(utilisation=0.3, for_seconds=1.0, clear=0.2),
                ),
            ),
        ),
        alerts=AlertsConfig(max_active=1, connect_search_share=0.25),
        exhaustions=ExhaustionsConfig(enabled=Switch.OFF, top=2),
        incidents=IncidentsConfig(directory="/var/lib/ephmon", max_files=3, max_mib=4),
        notify=NotifyConfig(
            labels={"team": "off", "shift": "1:30", "region": "é"},
            source_ports=PortRange(1000, 1000),
            alertmanager=AlertmanagerConfig(urls=("http://127.0.0.1:9093", "https://user:pass@am.example/prefix")),
            webhook=WebhookConfig(url="https://example.net/hook?token=a"),
        ),
        log=LogConfig(level=LogLevel.DEBUG, format=LogFormat.JSON),
        http=HttpConfig(hosts=("mon.example.net", "*.example.org", "1a"), token_file="/t"),
        tls=TlsConfig(certificate="/c.pem", key="/k.pem", client_ca="/a.pem"),
    )


@pytest.mark.parametrize(("word", "switch"), [("yes", "on"), ("true", "on"), ("no", "off"), ("false", "off")])
def test_a_switch_knows_the_words_of_yaml(word: str, switch: str) -> None:
    assert parse(f"exhaustions: {{enabled: {word}}}", "x").exhaustions.enabled == switch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", ListenAddress(host="127.0.0.1", port=0)),
        ("[::]:80", ListenAddress(host="::", port=80)),
        ("[::ffff:127.0.0.1]:80", ListenAddress(host="127.0.0.1", port=80)),
    ],
)
def test_the_command_line_reads_an_address_as_the_configuration_does(text: str, expected: ListenAddress) -> None:
    assert LISTEN.parse(text) == parse(f'listen: "{text}"', "x").listen == expected


@pytest.mark.parametrize("address", ["127.0.0.1:19100", "[::1]:80"])
def test_a_listen_address_is_shown_as_it_is_written(address: str) -> None:
    assert str(LISTEN.parse(address)) == address


def test_the_model_is_given_its_rules() -> None:
    config = parse("pools: {top: 3}\nthresholds: {warning: {utilisation: 0.5}}", "x")

    assert config.rules == Rules(
        listing=config.listing,
        namespaces=config.namespaces,
        thresholds=config.thresholds,
        polling=config.poll,
        max_active=config.alerts.max_active,
        connect_search_share=config.alerts.connect_search_share,
        own_ports=frozenset(range(19102, 19118)),
    )
    assert config.rules.listing.top == 3


# --- thresholds ---------------------------------------------------------------------------------------------------


def _thresholds(text: str) -> Thresholds:
    return parse(f"thresholds:\n{text}", "x").thresholds


@pytest.mark.parametrize(
    ("given_parts", "expected"),
    [
        ("utilisation: 0.8", Threshold(utilisation=0.8, for_seconds=10.0, clear=0.75)),
        ("utilisation: 0.06", Threshold(utilisation=0.06, for_seconds=10.0, clear=0.01)),
        ("clear: 0.1", Threshold(utilisation=0.7, for_seconds=10.0, clear=0.1)),
        ("for: 1m", Threshold(utilisation=0.7, for_seconds=60.0, clear=0.65)),
        ("utilisation: 0.8, clear: 0.7", Threshold(utilisation=0.8, for_seconds=10.0, clear=0.7)),
        ("utilisation: 0.04, clear: 0.03", Threshold(utilisation=0.04, for_seconds=10.0, clear=0.03)),
    ],
)
def test_clear_follows_a_new_utilisation_and_nothing_else_moves(given_parts: str, expected: Threshold) -> None:
    assert _thresholds(f"  warning: {{{given_parts}}}") == Thresholds(warning=expected)


@pytest.mark.parametrize(
    ("given_parts", "expected"),
    [
        ("utilisation: 0.8", Threshold(utilisation=0.8, for_seconds=7.0, clear=0.75)),
        ("for: 1s", Threshold(utilisation=0.95, for_seconds=1.0, clear=0.5)),
        ("clear: 0.6", Threshold(utilisation=0.95, for_seconds=7.0, clear=0.6)),
        ("", Threshold(utilisation=0.95, for_seconds=7.0, clear=0.5)),
    ],
)
def test_an_override_takes_what_it_leaves_out_from_the_same_severity(given_parts: str, expected: Threshold) -> None:
    text = "  critical: {utilisation: 0.95, for: 7s, clear: 0.5}\n  overrides:\n    - critical: "

    (override,) = _thresholds(f"{text}{{{given_parts}}}").overrides

    assert override == ThresholdOverride(critical=expected)


def test_overrides_keep_their_order_and_each_condition() -> None:
    text = """\
  overrides:
    - {destination: 10.0.0.0/8, destination_port: 5432, kind: tcp_connect, critical: {utilisation: 0.80}}
    - {source: "2001:db8::/32"}
    - {}
"""
    assert _thresholds(text).overrides == (
        ThresholdOverride(
            kind="tcp_connect",
            destination=IPv4Network("10.0.0.0/8"),
            destination_port=5432,
            critical=Threshold(utilisation=0.8, for_seconds=0.0, clear=0.75),
        ),
        ThresholdOverride(source=IPv6Network("2001:db8::/32")),
        ThresholdOverride(),
    )


@pytest.mark.parametrize(
    ("general", "mistake"),
    [
        ("critical: {utilisation: 95}", "x:2: thresholds.critical.utilisation: 95 is above 1; "),
        ("critical: {utilisation: *a}", "x:2: an alias (*) is not supported; "),
        ("warning: {utilisation: 0.95}", "x:2: thresholds.warning.utilisation: the warning at 0.95 is not below "),
    ],
)
def test_an_override_is_not_held_against_general_thresholds_that_are_wrong(general: str, mistake: str) -> None:
    """Else one mistake would be told as two."""
    (line,) = _refusal(f"thresholds:\n  {general}\n  overrides:\n    - {{warning: {{utilisation: 0.92}}}}\n")

    assert line.startswith(mistake)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_bad_file_is_refused_with_exactly_this_message(path: Path, golden: Callable[[Path, str], None]) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(path.read_text(encoding="utf-8"), path.name)

    golden(path.with_suffix(".expected"), f"{refusal.value}\n")


def test_each_expected_message_belongs_to_a_bad_file() -> None:
    assert {path.stem for path in BAD.glob("*.expected")} == {path.stem for path in BAD.glob("*.yaml")}


def test_the_path_of_the_file_heads_each_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("poll: {interval: 5}\nlog: {level: loud}\n", encoding="utf-8")

    with pytest.raises(ConfigError) as refusal:
        load(path)

    first, second = str(refusal.value).splitlines()
    assert first.startswith(f"{path}:1: poll.interval: 5 ")
    assert second.startswith(f"{path}:2: log.level: loud ")


def test_of_very_many_mistakes_the_first_are_reported_and_the_rest_is_counted() -> None:
    lines = _refusal("".join(f"key_{number}: 1\n" for number in range(5000)))

    assert lines[199].startswith("x:200: key_199: there is no such key")
    assert lines[200:] == ["x: there are 4800 more mistakes"]


PEM = "-----BEGIN PRIVATE KEY-----s3cret-----END PRIVATE KEY-----"
SECRETS = (
    "https://example.net/s3cret",
    "https://example.net/s3cret#x",
    "https://user:s3cret@example.net/",
    "https://[hooks.example:s3cret]/",
    "https://[fe80::1%s3cret]/",
    "https://s3cret host/",
    "htps://s3cret",
    "hooks.example/s3cret",
    "s3cret",
    PEM,
    "/run/s3cret\\u0007",
)
TAKE_SECRETS = (
    "notify: {{webhook: {{url: {}}}}}",
    "notify: {{webhook: {{url_file: {}}}}}",
    "notify: {{alertmanager: {{urls: [{}]}}}}",
    "notify: {{alertmanager: {{urls: {}}}}}",
    "http: {{token_file: {}}}",
    "tls: {{certificate: {}}}",
    "tls: {{key: {}}}",
    "tls: {{client_ca: {}}}",
    "notify: {{webhook: {}}}",
    "notify: {}",
    "tls: {}",
    # As keys, for want of a space or a key.
    "http: {{{}: }}",
    "notify: {{webhook: {{{}: }}}}",
    "notify: {{alertmanager: {{{}: }}}}",
    "tls: {{{}: }}",
)
TAKE_NONE = (
    "listen: {}",
    "poll: {{interval: {}}}",
    "incidents: {{directory: {}}}",
    "pools: {{ignore_destinations: [{}]}}",
    "thresholds: {{overrides: [{{destination: {}, warning: {{utilisation: 0.8}}}}]}}",
    "notify: {{labels: {{{}: a}}}}",
    "notify: {{source_ports: {}}}",
    "log: {{level: {}}}",
    "http: {{hosts: [{}]}}",
    "{}: 1",
)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("text", TAKE_SECRETS)
def test_what_stands_where_a_secret_or_its_file_belongs_is_in_no_message(text: str, secret: str) -> None:
    try:
        described = describe(parse(text.format(f'"{secret}"'), "x"))
    except ConfigError as refusal:
        described = str(refusal)

    assert "s3cret" not in described


@pytest.mark.parametrize("secret", [secret for secret in SECRETS if "://" in secret or secret == PEM])
@pytest.mark.parametrize("text", TAKE_NONE)
def test_a_url_or_a_key_is_in_no_message_wherever_it_stands(text: str, secret: str) -> None:
    assert "s3cret" not in "".join(_refusal(text.format(f'"{secret}"')))


@pytest.mark.parametrize(
    "text", ["url: &s3cret", "url: *s3cret", "url: !s3cret", "url: !s3cret!x", "url:https://s3cret"]
)
def test_a_secret_that_needs_quotes_is_in_no_message(text: str) -> None:
    """YAML takes it for an anchor, an alias, a tag or a key."""
    for document in (f"notify:\n  webhook:\n    {text}\n", f"notify: {{webhook: {{{text}}}}}"):
        assert "s3cret" not in "".join(_refusal(document))


# --- describe -----------------------------------------------------------------------------------------------------


def test_secrets_are_not_described_and_not_printed() -> None:
    config = parse(
        "notify:\n  alertmanager: {urls: ['https://user:s3cret@am.example:9093/s3cret']}\n"
        "  webhook: {url: 'https://example.net/s3cret'}\n",
        "x",
    )

    assert '    - "https://<redacted>@am.example:9093/<redacted>"\n' in describe(config)
    assert '    url: "<redacted>"\n' in describe(config)
    assert "s3cret" not in describe(config) + repr(config)


RATIOS = st.floats(0, 1, exclude_min=True, allow_subnormal=False)
NETWORKS = st.tuples(st.ip_addresses(), st.integers(0, 32)).map(lambda pair: ip_network(pair, strict=False))
PATHS = st.just("") | st.text(st.characters(exclude_categories=["C", "Z"])).map(lambda text: f"/{text}")
LABEL_NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,20}", fullmatch=True).filter(
    lambda name: not name.startswith("__") and name not in RESERVED_LABELS
)
LABELS = st.dictionaries(LABEL_NAMES, st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3)
COUNTS = st.integers(1, 10_000)


def _seconds(low: float, high: float) -> st.SearchStrategy[float]:
    """Return durations of whole milliseconds."""
    return st.integers(round(low * 1000), round(high * 1000)).map(lambda milliseconds: milliseconds / 1000)


@st.composite
def _threshold_pairs(draw: st.DrawFn) -> tuple[Threshold, Threshold]:
    """Return a warning and a critical that fit together."""
    numbers = st.lists(RATIOS, min_size=4, max_size=4, unique=True).map(sorted)
    low, middle, high, highest = draw(numbers)
    return (
        Threshold(utilisation=high, for_seconds=draw(_seconds(0, 86400)), clear=low),
        Threshold(utilisation=highest, for_seconds=draw(_seconds(0, 86400)), clear=middle),
    )


@st.composite
def _overrides(draw: st.DrawFn) -> ThresholdOverride:
    warning, critical = draw(_threshold_pairs())
    kind = draw(st.sampled_from([None, *PoolKind]))
    conditions: dict[str, object] = {"kind": kind, "source": draw(st.none() | NETWORKS)}
    if kind in (None, PoolKind.TCP_CONNECT):
        conditions |= {"destination_port": draw(st.none() | st.integers(1, 65535))}
        if conditions["source"] is None:
            conditions |= {"destination": draw(st.none() | NETWORKS)}
    return replace(ThresholdOverride(warning=warning, critical=critical), **conditions)  # type: ignore[arg-type]  # drawn above


@st.composite
def _thresholds_drawn(draw: st.DrawFn) -> Thresholds:
    warning, critical = draw(_threshold_pairs())
    overrides = draw(st.lists(_overrides() | st.just(ThresholdOverride()), max_size=3))
    return Thresholds(warning=warning, critical=critical, overrides=tuple(overrides))


CONFIGS = st.builds(
    Config,
    listen=st.builds(ListenAddress, host=st.sampled_from(["0.0.0.0", "::", "fe80::1"]), port=st.integers(0, 65535)),
    poll=st.builds(
        PollConfig,
        interval_seconds=_seconds(0.1, 3600),
        urgent_interval_seconds=_seconds(0.1, 3600),
        deadline_seconds=_seconds(0.1, 3600),
        cpu_budget=RATIOS,
        urgent_cpu_budget=RATIOS,
    ),
    listing=st.builds(
        ListingRules,
        top=COUNTS,
        min_in_use=st.integers(0, 65535),
        peak_window_seconds=_seconds(1, 86400),
        ignore_destinations=st.lists(
            st.builds(DestinationPattern, network=NETWORKS, port=st.none() | st.integers(1, 65535)), max_size=3
        ).map(tuple),
    ),
    thresholds=_thresholds_drawn(),
    alerts=st.builds(AlertsConfig, max_active=COUNTS),
    exhaustions=st.builds(ExhaustionsConfig, top=COUNTS),
    incidents=st.builds(IncidentsConfig, directory=PATHS, max_files=COUNTS, max_mib=st.integers(1, 1_000_000)),
    notify=st.builds(
        NotifyConfig,
        labels=LABELS,
        source_ports=st.lists(st.integers(1, 65535), min_size=2, max_size=2).map(lambda ends: PortRange(*sorted(ends))),
        alertmanager=st.just(AlertmanagerConfig(urls=("http://127.0.0.1:9093", "https://[::1]/"))),
        webhook=st.builds(WebhookConfig, url=st.just(""), url_file=PATHS),
    ),
    log=st.builds(LogConfig),
    http=st.builds(HttpConfig, hosts=st.just(()) | st.just(("web1", "*.example.net", "a_b.c-d")), token_file=PATHS),
    tls=st.sampled_from([TlsConfig(), TlsConfig(certificate="/c", key="/k", client_ca="/a")]),
)


@settings(deadline=None)  # PyYAML is slow on a busy machine
@given(CONFIGS)
def test_what_is_described_is_read_back(config: Config) -> None:
    assert parse(describe(config), "x") == config


KEYS = st.sampled_from([*re.findall(r"\w+", describe(Config())), "destination", "kind", "<<", "", "é"])
VALUES = (
    st.sampled_from(["5s", "0.5", "1", "", "auto", "10.0.0.0/8", "::1", "&a", "*a", "!x", '"', "'", "\n"]) | st.text()
)


@settings(deadline=None)
@example("thresholds: {overrides: [{warning: {utilisation: *a}}]}")
@example("notify: {labels: {a: *a}, alertmanager: {urls: [*b]}}")
@example("*a")
@given(
    st.recursive(
        VALUES,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
            | st.lists(st.tuples(KEYS, inner), max_size=4).map(
                lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
            )
        ),
    )
)
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    try:
        parse(text, "x")
    except ConfigError as refusal:
        assert all(line.startswith("x:") for line in str(refusal).splitlines())  # noqa: PT017  # allowed, not required


# --- documentation ------------------------------------------------------------------------------------------------


def _every_key() -> dict[str, str]:
    """Return path and default of every key of the configuration, as text."""
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in describe(Config()).splitlines():
        name, _, value = line.strip().partition(":")
        parents[(len(line) - len(line.lstrip())) // 2 :] = [name]
        if value:
            found[".".join(parents)] = value.strip()
    return found


def _documented() -> dict[str, tuple[str, str]]:
    """Return path, default and meaning of every key of the first table of the documentation."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\| `([^`]*)` \| (.*) \|$", text, re.MULTILINE)
    return {path: (default, meaning) for path, default, meaning in rows}


def test_every_key_is_documented_with_its_default() -> None:
    assert {path: default for path, (default, _) in _documented().items()} == _every_key()


def test_the_examples_of_the_documentation_can_be_used() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)

    assert [parse(example, "x") != Config() for example in examples] == [True, True]
