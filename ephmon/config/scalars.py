"""The types of single values in the configuration: each parsed from text and formatted as text.

`parse` raises ValueError with one sentence that names the text and says what to use instead. `format` returns text that
`parse` reads back to the same value. Where a value has a unit, the name of its type says which.

The values of some types are secrets, or name a file with a secret: no message repeats their text, and `format` leaves
the secret out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import SplitResult, urlsplit

from ephmon.config.endpoint import (
    format_network_endpoint,
    parse_address,
    parse_network,
    parse_network_endpoint,
    parse_port,
)
from ephmon.errors import quote
from ephmon.facts.snapshot import PortRange
from ephmon.model.rules import DestinationPattern, Network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from enum import StrEnum

T = TypeVar("T")
Word = TypeVar("Word", bound="StrEnum")

REDACTED = "<redacted>"
RESERVED_LABELS = frozenset(
    {"alertname", "severity", "netns", "kind", "source", "destination", "destination_port"},
)
"""Labels that ephmon's own alerts carry."""

_LONGEST = 40
"""Characters of a number. A longer one is a mistake, and int() takes time quadratic in the length."""
_WHOLE = re.compile(r"([+-]?[0-9]+)(?:[eE]\+?([0-9]{1,2}))?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DURATION = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
_LONGEST_HOST_NAME = 253
# A browser takes a name for an IPv4 address if its last label looks like a number (URL Standard, "ends in a number").
_NUMBER_OF_IPV4 = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PERCENT = re.compile(r"[0-9.]+ ?%")


@dataclass(frozen=True, slots=True)
class Scalar(Generic[T]):
    """One type of single value."""

    parse: Callable[[str], T]
    format: Callable[[T], str]
    is_secret: bool = False
    """Whether the text may be a secret, also one that belongs elsewhere. `parse` never repeats it."""


def whole_number(low: int, high: int) -> Scalar[int]:
    """Return the type of whole numbers from `low` to `high`, both inclusive."""
    fix = f"use a whole number from {low} to {high}"

    def parse(text: str) -> int:
        if len(text) > _LONGEST:
            raise ValueError(f"{quote(text)} has too many characters; {fix}")
        match = _WHOLE.fullmatch(text)
        if match is None:
            raise ValueError(f"{quote(text)} is not a whole number; {fix}")
        number = int(match[1]) * int("1" + "0" * int(match[2] or 0))
        if not low <= number <= high:
            raise ValueError(f"{quote(text)} is {'below' if number < low else 'above'} the limit; {fix}")
        return number

    return Scalar(parse, str)


def _parse_ratio(text: str) -> float:
    fix = "use a ratio between 0 and 1"
    if _PERCENT.fullmatch(text):
        raise ValueError(f"{quote(text)} is a percentage; {fix}, such as 0.7 for 70 percent")
    if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        raise ValueError(f"{quote(text)} is not a number; {fix}")
    ratio = float(text)
    if ratio > 1:
        raise ValueError(f"{quote(text)} is above 1; {fix}")
    if ratio <= 0:
        raise ValueError(f"{quote(text)} is not above 0; {fix}")
    return ratio


RATIO: Scalar[float] = Scalar(_parse_ratio, repr)
"""Above 0 and at most 1."""


def duration_seconds(low: str, high: str) -> Scalar[float]:
    """Return the type of durations from `low` to `high`, such as "100ms" and "1h"; values are seconds, whole in ms."""
    lowest, highest = _milliseconds(low), _milliseconds(high)

    def parse(text: str) -> float:
        milliseconds = _milliseconds(text)
        if not lowest <= milliseconds <= highest:
            side = f"shorter than {low}" if milliseconds < lowest else f"longer than {high}"
            raise ValueError(f"{quote(text)} is {side}; use a duration from {low} to {high}")
        return milliseconds / 1000

    return Scalar(parse, format_duration)


def _milliseconds(text: str) -> int:
    match = _DURATION.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        if len(text) <= _LONGEST and _NUMBER.fullmatch(text):
            raise ValueError(f"{text} has no unit; use {text}s, or one of ms, m and h")
        raise ValueError(f"{quote(text)} is not a duration; use a number and ms, s, m or h, such as 90s")
    milliseconds = Fraction(match[1]) * _MILLISECONDS[match[2]]
    if milliseconds.denominator != 1:
        raise ValueError(f"{quote(text)} has a fraction of a millisecond; use whole milliseconds, such as 1500ms")
    return int(milliseconds)


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit that gives a whole number, rounded to milliseconds."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    unit, size = next((unit, size) for unit, size in _MILLISECONDS.items() if milliseconds % size == 0)
    return f"{milliseconds // size}{unit}"


def one_of(words: type[Word], synonyms: Mapping[str, Word] | None = None) -> Scalar[Word]:
    """Return the type of values that are one word of a closed set; `synonyms` are accepted but not listed."""
    known = {word.value: word for word in words}
    readable = {**known, **(synonyms or {})}
    *first, last = known
    choices = f"{', '.join(first)} or {last}"

    def parse(text: str) -> Word:
        if text not in readable:
            raise ValueError(f"{quote(text)} is not valid; use {choices}")
        return readable[text]

    return Scalar(parse, str)


def may_be_secret(text: str) -> bool:
    """Tell whether a text that stands where no secret belongs may be one: a URL, or a key in PEM form."""
    return "://" in text or "-----BEGIN" in text


def _parse_path(text: str) -> str:
    # Not repeated: the secret itself may stand where its file is to be named.
    if "://" in text:
        raise ValueError("this is a URL, not a path; use the absolute path of a file")
    if "-----BEGIN" in text:
        raise ValueError("this is what the file has to contain, not its path; use the absolute path of a file")
    if text and not text.startswith("/"):
        raise ValueError("this is not an absolute path of a file; start it with /")
    if not text.isprintable():
        raise ValueError("this path contains a character that cannot be printed; remove it")
    return text


PATH: Scalar[str] = Scalar(_parse_path, str, is_secret=True)
"""An absolute path, or "" for none."""


def _parse_host_name(text: str) -> str:
    name = text.lower().removesuffix(".")
    if name.startswith("*") and not name.startswith("*."):
        raise ValueError(f"{quote(text)} is too wide; write *.example.net for all names below example.net")
    if len(name) > _LONGEST_HOST_NAME or not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{quote(text)} is not a host name; write a name alone, such as web1.example.net")
    if _NUMBER_OF_IPV4.fullmatch(name.rpartition(".")[2]):
        raise ValueError(f"{quote(text)} is an address; remove it, because addresses are always accepted")
    return name


HOST_NAME: Scalar[str] = Scalar(_parse_host_name, str)
"""A host name in lower case, or `*.` and a domain for all names below it."""


def _parse_label_name(text: str) -> str:
    if not _LABEL.fullmatch(text):
        rule = "up to 128 of a-z, A-Z, 0-9 and _, and no digit first"
        raise ValueError(f"{quote(text)} is not a valid Prometheus label name; use {rule}")
    if text.startswith("__"):
        raise ValueError(f"{quote(text)} is reserved: Prometheus drops labels that begin with __; choose another")
    if text in RESERVED_LABELS:
        raise ValueError(f"{quote(text)} is reserved: ephmon sets this label itself; choose another")
    return text


LABEL_NAME: Scalar[str] = Scalar(_parse_label_name, str)


def _parse_label_value(text: str) -> str:
    if not text:
        raise ValueError("an empty label value is the same as no label; set a value or remove the label")
    if len(text) > 1024:
        raise ValueError(f"{quote(text)} has {len(text)} characters; use at most 1024")
    return text


LABEL_VALUE: Scalar[str] = Scalar(_parse_label_value, str)


def _parse_namespace_pattern(text: str) -> str:
    if not text or any(character.isspace() for character in text):
        raise ValueError("write the name of a network namespace or a pattern, as in pod/kube-system/*")
    return text


NAMESPACE_PATTERN: Scalar[str] = Scalar(_parse_namespace_pattern, str)


def _parse_port_range(text: str) -> PortRange:
    low_text, dash, high_text = text.partition("-")
    if not dash:
        raise ValueError(f"{quote(text)} is not a range; use LOW-HIGH, such as 19102-19117")
    low, high = parse_port(low_text.strip()), parse_port(high_text.strip())
    if low > high:
        raise ValueError(f"{quote(text)} is the wrong way round; use {high}-{low}")
    return PortRange(low, high)


def _parse_destination(text: str) -> DestinationPattern:
    network, port = parse_network_endpoint(text)
    return DestinationPattern(network=network, port=port)


PORT_RANGE: Scalar[PortRange] = Scalar(_parse_port_range, lambda ports: f"{ports.low}-{ports.high}")
PORT: Scalar[int] = Scalar(parse_port, str)
NETWORK: Scalar[Network] = Scalar(parse_network, str)
DESTINATION: Scalar[DestinationPattern] = Scalar(
    _parse_destination, lambda pattern: format_network_endpoint(pattern.network, pattern.port)
)


# One message for both checks, because the version of Python decides which one finds a bad host: urlsplit() of Debian's
# 3.11.2 refuses http://[::1]x/, as newer versions do, and urlsplit() of 3.11.7 does not.
_BAD_HOST = "the URL has no valid host or port; use http://HOST:PORT/PATH"


def _split_url(text: str) -> SplitResult:
    """Split a URL; no message repeats it, because it may contain a secret."""
    if not _URL.fullmatch(text):
        raise ValueError("the URL is empty or contains a character that URLs do not allow; percent-encode it")
    try:
        url = urlsplit(text)
        _ = url.port  # urlsplit() checks the port only when it is read
    except ValueError:
        raise ValueError(_BAD_HOST) from None
    if url.scheme not in ("http", "https"):
        raise ValueError("the URL does not begin with http:// or https://; use the whole URL")
    _check_host(url)
    if "#" in text:
        raise ValueError("the URL has a fragment (#), which is never sent; remove it")
    return url


def _check_host(url: SplitResult) -> None:
    host = url.hostname or ""
    if ":" in host and re.search(r"\](?::[0-9]*)?$", url.netloc):
        _check_literal(host)
    elif not _HOST.fullmatch(host):
        raise ValueError(_BAD_HOST)
    if url.port == 0:
        raise ValueError("the URL has port 0, where nothing can listen; use the port of the receiver")


def _check_literal(host: str) -> None:
    if "%" in host:
        raise ValueError("the URL has an address with a zone id, which ephmon does not support; remove the zone id")
    try:
        parse_address(host)
    except ValueError:
        raise ValueError(_BAD_HOST) from None


def _parse_base_url(text: str) -> str:
    if "?" in text:
        raise ValueError("the URL has a query (?), which a base URL cannot have; remove it")
    _split_url(text)
    return text


def _format_base_url(text: str) -> str:
    url = urlsplit(text)
    _, at, host = url.netloc.rpartition("@")
    path = f"/{REDACTED}" if url.path.strip("/") else url.path
    return f"{url.scheme}://{REDACTED if at else ''}{at}{host}{path}"


BASE_URL: Scalar[str] = Scalar(_parse_base_url, _format_base_url, is_secret=True)
"""A URL to which a path is appended; `format` hides a user, a password and a path, which may be a token."""


def _parse_secret_url(text: str) -> str:
    if text:
        _split_url(text)
    return text


SECRET_URL: Scalar[str] = Scalar(_parse_secret_url, lambda text: REDACTED if text else "", is_secret=True)
"""A URL that is itself a secret, or "" for none."""
