"""How deliveries, incident files and requests fare: the words for what went wrong, and the counts of the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class ReceiverKind(StrEnum):
    """Whom alerts are sent to."""

    ALERTMANAGER = "alertmanager"
    WEBHOOK = "webhook"


class DeliveryFailure(StrEnum):
    """Why an attempt failed."""

    NAME = "name"
    """The name of the receiver is not known: it could not be looked up."""
    SOURCE_PORT = "source_port"
    """No port of notify.source_ports could be had."""
    CONNECTION = "connection"
    """No connection, or it broke before there was an answer."""
    TLS = "tls"
    TIMEOUT = "timeout"
    """No answer in time, or 408: a proxy has not got all of the message in time."""
    PROTOCOL = "protocol"
    """The answer is not HTTP/1.1."""
    REDIRECT = "redirect"
    CLIENT_ERROR = "client_error"
    """4xx but 408 and 429: the receiver does not want this, so it is not asked again."""
    RATE_LIMITED = "rate_limited"
    """429."""
    SERVER_ERROR = "server_error"
    DEFECT = "defect"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryStatus:
    """Counts since the start and what stands now, by kind of receiver; a kind without a receiver has no entry."""

    attempts: Mapping[ReceiverKind, int]
    failures: Mapping[ReceiverKind, Mapping[DeliveryFailure, int]]
    pending: Mapping[ReceiverKind, int]
    """Alerts whose present state has not reached every receiver of the kind."""
    succeeded_at: Mapping[ReceiverKind, float]
    """When a receiver of the kind last took alerts, seconds since the epoch; no entry before the first time."""
    dropped: Mapping[ReceiverKind, int]
    """Alerts whose end was forgotten before a receiver came back to be told of it."""


@dataclass(slots=True)
class DeliveryCounts:
    """What is counted for all receivers of one kind. Written by the delivery thread alone."""

    attempts: int = 0
    failures: Counter[DeliveryFailure] = field(
        # All are there from the start, so that a reader in another thread never sees the mapping grow.
        default_factory=lambda: Counter(dict.fromkeys(DeliveryFailure, 0))
    )
    succeeded_at: float | None = None
    dropped: int = 0


def status_of(
    counts: Mapping[ReceiverKind, DeliveryCounts], pending: Iterable[tuple[ReceiverKind, int]]
) -> DeliveryStatus:
    """Return the status; `pending` has an entry for each receiver, and names the kinds that there are."""
    most: dict[ReceiverKind, int] = {}
    for kind, number in pending:
        most[kind] = max(number, most.get(kind, 0))
    return DeliveryStatus(
        attempts={kind: counts[kind].attempts for kind in most},
        failures={kind: dict(counts[kind].failures) for kind in most},
        pending=most,
        succeeded_at={kind: moment for kind in most if (moment := counts[kind].succeeded_at) is not None},
        dropped={kind: counts[kind].dropped for kind in most},
    )


class IncidentFailure(StrEnum):
    """Why an incident could not be written."""

    NO_DIRECTORY = "no_directory"
    PERMISSION = "permission"
    READ_ONLY = "read_only"
    NO_SPACE = "no_space"
    TOO_LARGE = "too_large"
    """One file would take more than incidents.max_mib."""
    SYSTEM = "system"
    """Any other error of the system."""
    DEFECT = "defect"


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentStatus:
    """Incident files since the start."""

    written: int = 0
    failures: Mapping[IncidentFailure, int] = field(default_factory=lambda: dict.fromkeys(IncidentFailure, 0))


class RequestRefusal(StrEnum):
    """Why an HTTP request got no answer."""

    HOST = "host"
    """It names a host that is not this one."""
    NO_TOKEN = "no_token"  # noqa: S105 - not a token
    WRONG_TOKEN = "wrong_token"  # noqa: S105 - not a token
    RATE_LIMITED = "rate_limited"
    """Too many wrong tokens came before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpStatus:
    """How the HTTP side fares."""

    refused: Mapping[RequestRefusal, int] = field(default_factory=lambda: dict.fromkeys(RequestRefusal, 0))
    """Requests since the start."""
    certificate_expires_at: float | None = None
    """Seconds since the epoch; None without TLS, or where the certificate does not say."""
