"""The TLS context of the HTTP server, built from the files that the configuration names, and anew when they change."""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.errors import ConfigError, shortage
from ephmon.log import Line
from ephmon.outputs.text.wording import utc_time
from ephmon.regular_file import FileVersion, UnreadableFileError, file_version, read_regular_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RETRY_SECONDS = 60.0
"""Files that could not be used are read again after so long even if they look the same."""

_MAX_BYTES = 1 << 20
_IGNORE_DATES = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h), which the ssl module does not name."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a TLS server."""

    certificate: Path
    """The server's certificate, followed by the intermediate certificates."""
    key: Path
    """Its private key, not encrypted."""
    client_ca: Path | None = None
    """Certificates of the authorities that may sign client certificates; None: clients need no certificate."""

    @property
    def versions(self) -> tuple[FileVersion | None, ...]:
        """The versions of the files as they are now."""
        return tuple(file_version(file) for file in (self.certificate, self.key, self.client_ca) if file is not None)


class RenewedTls:
    """A TLS context that follows its files, so that a certificate may be renewed at any time.

    `context` belongs to the thread of the server; `expires_at` may be read from any thread.

    Raises:
        ConfigError: A file cannot be used; one sentence that names it.
    """

    def __init__(self, files: TlsFiles, *, monotonic: Callable[[], float]) -> None:
        self._files = files
        self._monotonic = monotonic
        self._versions = files.versions
        self._context = build_tls_context(files)
        self._tried_at = monotonic()
        self._problem = ""
        """Why the files as they are now cannot be used."""
        self.expires_at = certificate_expiry(files)
        """When the certificate expires, seconds since the epoch; None if it cannot be told."""

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection: of the files as they are now, or as they last could be used."""
        # Before the files are read, so that a change meanwhile is seen the next time.
        versions = self._files.versions
        if versions != self._versions or (self._problem and self._monotonic() - self._tried_at >= RETRY_SECONDS):
            self._renew()
            # Not if that was interrupted, for example for want of memory: then the next connection tries again.
            self._versions = versions
            self._tried_at = self._monotonic()
        return self._context

    def _renew(self) -> None:
        try:
            self._context = build_tls_context(self._files)
        except ConfigError as error:
            if str(error) != self._problem:
                log.write(_log, Line(logging.ERROR, f"The TLS files changed, and the old ones stay in use: {error}"))
            self._problem = str(error)
            return
        self._problem = ""
        self.expires_at = certificate_expiry(self._files)
        expires = None if self.expires_at is None else utc_time(self.expires_at)
        log.write(_log, Line(logging.INFO, "The TLS files changed, and the new ones are in use.", {"expires": expires}))


def build_tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Read the files into a context for TLS 1.2 and later.

    Raises:
        ConfigError: A file cannot be used; one sentence that names it.
    """
    for file in (files.certificate, files.key, files.client_ca):
        if file is not None:
            _require_readable(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Before OpenSSL 3.0 a client could demand one handshake after another on a connection, which costs the server CPU.
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_certificate(context, files)
    if files.client_ca is not None:
        _load_client_ca(context, files.client_ca)
    return context


def certificate_expiry(files: TlsFiles) -> float | None:
    """Return when the certificate that clients see expires, seconds since the epoch; None if OpenSSL refuses it.

    The ssl module decodes a certificate only for a client that has verified it. So a client in memory shakes hands
    with a server in memory, and trusts this certificate alone, whatever its dates.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        _load_certificate(server, files)
        client.load_verify_locations(files.certificate)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _IGNORE_DATES
        ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
        for end in (*ends, *ends):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
        seen = ends[0].getpeercert() or {}
        return float(ssl.cert_time_to_seconds(str(seen["notAfter"])))
    except (ConfigError, OSError, ValueError, KeyError):  # SSLError is an OSError
        return None


def _require_readable(file: Path) -> None:
    # OpenSSL would wait for the writer of a FIFO, and its errors do not name the file.
    try:
        read_regular_file(file, _MAX_BYTES)
    except UnreadableFileError as error:
        what_helps = shortage(error.__cause__) if isinstance(error.__cause__, OSError) else None
        what_helps = what_helps or "TLS needs a PEM file that ephmon's user can read"
        raise ConfigError(f"{file} {error}; {what_helps}.") from error


def _load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    def refuse_passphrase() -> str:
        # Without a callback OpenSSL asks for the passphrase on the terminal and waits.
        raise ConfigError(f"{files.key} is encrypted, and ephmon cannot ask for a passphrase; store it without one.")

    try:
        context.load_cert_chain(files.certificate, files.key, password=refuse_passphrase)
    except (ssl.SSLError, OSError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            message = f"{files.key} is not the key of the certificate in {files.certificate}."
        else:
            message = f"{files.certificate} and {files.key} are not a certificate and its key in PEM form."
        raise ConfigError(message) from error


def _load_client_ca(context: ssl.SSLContext, client_ca: Path) -> None:
    try:
        context.load_verify_locations(client_ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{client_ca} contains no certificate in PEM form.") from error
    context.verify_mode = ssl.CERT_REQUIRED
