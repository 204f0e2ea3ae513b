"""The configuration: its keys, their defaults, and the checks between them.

YAML text goes in and a `Config` comes out, or a ConfigError with a line for every mistake. Defaults are in the
dataclasses here and in `ephmon.model.rules`, and nowhere else. A missing key has its default, which never depends on
another key. `docs/configuration.md` explains the keys to users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from ephmon.config.endpoint import format_endpoint, parse_address, parse_endpoint
from ephmon.config.file import quote_path, read_text
from ephmon.config.scalars import (
    BASE_URL,
    DESTINATION,
    HOST_NAME,
    LABEL_NAME,
    LABEL_VALUE,
    NAMESPACE_PATTERN,
    PATH,
    PORT_RANGE,
    RATIO,
    SECRET_URL,
    Scalar,
    duration_seconds,
    one_of,
    whole_number,
)
from ephmon.config.schema import MAX_PROBLEMS, ListOf, ReadState, Section, Single, TextMapping
from ephmon.config.thresholds import ThresholdsShape
from ephmon.config.yaml_document import Problem, compose, dump
from ephmon.errors import ConfigError
from ephmon.facts.addresses import HIGHEST_PORT
from ephmon.facts.snapshot import PortRange
from ephmon.model.alerting.thresholds import Thresholds
from ephmon.model.rules import ListingRules, NamespaceRules, PollingRules, Rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class BackendChoice(StrEnum):
    """How sockets are read; `auto` is the best way that works."""

    AUTO = "auto"
    BPF = "bpf"
    INET_DIAG = "inet_diag"
    PROCFS = "procfs"


class Watched(StrEnum):
    """Which network namespaces are read: the own one, or all of the host."""

    OWN = "own"
    ALL = "all"


class ProbeChoice(StrEnum):
    """Whether ephmon asks the kernel about ports in doubt; `auto`: if it is possible."""

    NEVER = "never"
    AUTO = "auto"


class Switch(StrEnum):
    """Whether something is done; `auto`: if it is possible."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LogLevel(StrEnum):
    """The least urgent messages that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log line is written; `auto` depends on what standard error is."""

    AUTO = "auto"
    LOGFMT = "logfmt"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """Where the HTTP server listens: an address literal and a port; with port 0 the kernel chooses one."""

    host: str = "127.0.0.1"
    port: int = 19100

    def __str__(self) -> str:
        return format_endpoint(parse_address(self.host), self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class PollConfig(PollingRules):
    """How often the kernel is read, by which backend, and for how long at most."""

    deadline_seconds: float = 5.0
    backend: BackendChoice = BackendChoice.AUTO
    probe: ProbeChoice = ProbeChoice.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacesConfig(NamespaceRules):
    """Which network namespaces are read."""

    watch: Watched = Watched.OWN


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsConfig:
    """How many alerts may be active at once, and when connect() counts as slow."""

    max_active: int = 50
    connect_search_share: float = 0.05
    """Of a core, taken by the searches of one pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustionsConfig:
    """The collector of connect() calls that failed because no port was left."""

    enabled: Switch = Switch.AUTO
    top: int = 100
    """Destinations that are counted one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentsConfig:
    """Where incidents are kept, and how many of them."""

    directory: str = ""
    """Absolute; "" keeps none."""
    max_files: int = 20
    max_mib: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertmanagerConfig:
    """The Alertmanagers that alerts are sent to, all of them."""

    urls: tuple[str, ...] = field(default=(), repr=False)
    """May hold a user and a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """The webhook that alerts are sent to: a URL, or the file that holds it; "" for neither."""

    url: str = field(default="", repr=False)
    """A secret."""
    url_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyConfig:
    """Where alerts are sent, with which labels, and from which local ports."""

    labels: Mapping[str, str] = field(default_factory=dict)
    source_ports: PortRange = field(default=PortRange(19102, 19117))
    alertmanager: AlertmanagerConfig = field(default=AlertmanagerConfig())
    webhook: WebhookConfig = field(default=WebhookConfig())


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is logged, and how it is written."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Which requests are answered."""

    hosts: tuple[str, ...] = ()
    """Names of this host beside those that it knows, in lower case; `*.example.net` is every name below."""
    token_file: str = ""
    """Holds the token that clients must show; "" asks for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """PEM files of the HTTP side; "" for none. With `client_ca` every client must show a certificate signed by it."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that the user decides, checked."""

    listen: ListenAddress = field(default=ListenAddress())
    poll: PollConfig = field(default=PollConfig())
    namespaces: NamespacesConfig = field(default=NamespacesConfig())
    listing: ListingRules = field(default=ListingRules())
    thresholds: Thresholds = field(default=Thresholds())
    alerts: AlertsConfig = field(default=AlertsConfig())
    exhaustions: ExhaustionsConfig = field(default=ExhaustionsConfig())
    incidents: IncidentsConfig = field(default=IncidentsConfig())
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    log: LogConfig = field(default=LogConfig())
    http: HttpConfig = field(default=HttpConfig())
    tls: TlsConfig = field(default=TlsConfig())

    @property
    def rules(self) -> Rules:
        """The part of the configuration that the model needs."""
        return Rules(
            listing=self.listing,
            namespaces=self.namespaces,
            thresholds=self.thresholds,
            polling=self.poll,
            max_active=self.alerts.max_active,
            connect_search_share=self.alerts.connect_search_share,
            own_ports=frozenset(range(self.notify.source_ports.low, self.notify.source_ports.high + 1)),
        )


def load(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: One line for each mistake, or one about the file itself.
    """
    return parse(read_text(path), str(path))


def parse(text: str, name: str) -> Config:
    """Read a configuration from text; messages call it `name`.

    Raises:
        ConfigError: One line for each mistake: name, line, path of the key and one sentence.
    """
    document = compose(text)
    state = ReadState(document, problems=list(document.problems))
    config = Config() if document.root is None else _CONFIG.read(document.root, "", state)
    if state.problems or config is None:
        raise ConfigError(_format_problems(quote_path(name), state.problems))
    return config


def describe(config: Config) -> str:
    """Return the configuration in force as YAML that `parse` reads back; secrets are replaced by `<redacted>`."""
    return dump(_CONFIG.dump(config))


def _format_problems(name: str, problems: list[Problem]) -> str:
    ordered = sorted(problems, key=lambda problem: problem.line)
    lines = [": ".join(filter(None, (f"{name}:{line}", path, message))) for line, path, message in ordered]
    if len(lines) > MAX_PROBLEMS:
        lines[MAX_PROBLEMS:] = [f"{name}: there are {len(lines) - MAX_PROBLEMS} more mistakes"]
    return "\n".join(lines)


def _parse_listen(text: str) -> ListenAddress:
    address, port = parse_endpoint(text, port_required=True, lowest_port=0)
    return ListenAddress(host=str(address), port=port or 0)


LISTEN: Scalar[ListenAddress] = Scalar(_parse_listen, str)
"""`IPV4:PORT` or `[IPV6]:PORT`."""

_BUDGET = Single(RATIO)
_COUNT = Single(whole_number(1, 10_000))
_PATH = Single(PATH)


def _webhook_mistakes(webhook: WebhookConfig) -> Iterator[tuple[str, str]]:
    if webhook.url and webhook.url_file:
        yield "url_file", "url and url_file are both set; keep one"


def _alertmanager_mistakes(alertmanager: AlertmanagerConfig) -> Iterator[tuple[str, str]]:
    if len(set(alertmanager.urls)) < len(alertmanager.urls):
        yield "urls", "one URL is listed twice; keep one"


def _tls_mistakes(tls: TlsConfig) -> Iterator[tuple[str, str]]:
    if tls.certificate and not tls.key:
        yield "certificate", "a certificate needs its key; set key too"
    if tls.key and not tls.certificate:
        yield "key", "a key needs its certificate; set certificate too"
    if tls.client_ca and not (tls.certificate or tls.key):
        yield "client_ca", "client certificates need TLS; set certificate and key too"


def _config_mistakes(config: Config) -> Iterator[tuple[str, str]]:
    without_bpf = (BackendChoice.INET_DIAG, BackendChoice.PROCFS)
    if config.namespaces.watch is Watched.ALL and config.poll.backend in without_bpf:
        yield "namespaces.watch", f"all takes BPF, and poll.backend: {config.poll.backend} does without it; set auto"


_POLL = Section(
    PollConfig(),
    {
        "interval": ("interval_seconds", Single(duration_seconds("100ms", "1h"))),
        "urgent_interval": ("urgent_interval_seconds", Single(duration_seconds("100ms", "1h"))),
        "deadline": ("deadline_seconds", Single(duration_seconds("100ms", "1h"))),
        "cpu_budget": ("cpu_budget", _BUDGET),
        "urgent_cpu_budget": ("urgent_cpu_budget", _BUDGET),
        "backend": ("backend", Single(one_of(BackendChoice))),
        "probe": ("probe", Single(one_of(ProbeChoice))),
    },
)
_NAMESPACES = Section(
    NamespacesConfig(),
    {"watch": ("watch", Single(one_of(Watched))), "ignore": ("ignore", ListOf(Single(NAMESPACE_PATTERN)))},
)
_POOLS = Section(
    ListingRules(),
    {
        "top": ("top", _COUNT),
        "min_in_use": ("min_in_use", Single(whole_number(0, HIGHEST_PORT))),
        "peak_window": ("peak_window_seconds", Single(duration_seconds("1s", "24h"))),
        "ignore_destinations": ("ignore_destinations", ListOf(Single(DESTINATION))),
    },
)
_SYNONYMS = {"true": Switch.ON, "yes": Switch.ON, "false": Switch.OFF, "no": Switch.OFF}
_EXHAUSTIONS = Section(
    ExhaustionsConfig(), {"enabled": ("enabled", Single(one_of(Switch, _SYNONYMS))), "top": ("top", _COUNT)}
)
_INCIDENTS = Section(
    IncidentsConfig(),
    {
        "directory": ("directory", _PATH),
        "max_files": ("max_files", _COUNT),
        "max_mib": ("max_mib", Single(whole_number(1, 1_000_000))),
    },
)
_NOTIFY = Section(
    NotifyConfig(),
    {
        "labels": ("labels", TextMapping(LABEL_NAME, LABEL_VALUE)),
        "source_ports": ("source_ports", Single(PORT_RANGE)),
        "alertmanager": (
            "alertmanager",
            Section(AlertmanagerConfig(), {"urls": ("urls", ListOf(Single(BASE_URL)))}, _alertmanager_mistakes),
        ),
        "webhook": (
            "webhook",
            Section(
                WebhookConfig(),
                {"url": ("url", Single(SECRET_URL)), "url_file": ("url_file", _PATH)},
                _webhook_mistakes,
            ),
        ),
    },
)
_LOG = Section(
    LogConfig(),
    {"level": ("level", Single(one_of(LogLevel))), "format": ("format", Single(one_of(LogFormat)))},
)
_HTTP = Section(
    HttpConfig(), {"hosts": ("hosts", ListOf(Single(HOST_NAME))), "token_file": ("token_file", Single(PATH))}
)
_TLS = Section(
    TlsConfig(),
    {"certificate": ("certificate", _PATH), "key": ("key", _PATH), "client_ca": ("client_ca", _PATH)},
    _tls_mistakes,
)
_CONFIG = Section(
    Config(),
    {
        "listen": ("listen", Single(LISTEN)),
        "poll": ("poll", _POLL),
        "namespaces": ("namespaces", _NAMESPACES),
        "pools": ("listing", _POOLS),
        "thresholds": ("thresholds", ThresholdsShape(Thresholds())),
        "alerts": (
            "alerts",
            Section(
                AlertsConfig(),
                {
                    "max_active": ("max_active", _COUNT),
                    "connect_search_share": ("connect_search_share", Single(RATIO)),
                },
            ),
        ),
        "exhaustions": ("exhaustions", _EXHAUSTIONS),
        "incidents": ("incidents", _INCIDENTS),
        "notify": ("notify", _NOTIFY),
        "log": ("log", _LOG),
        "http": ("http", _HTTP),
        "tls": ("tls", _TLS),
    },
    _config_mistakes,
)
