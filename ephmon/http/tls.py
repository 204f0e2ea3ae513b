"""The TLS context of the HTTP server, built from the files that the configuration names."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ephmon.errors import ConfigError
from ephmon.regular_file import UnreadableFileError, read_regular_file

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a TLS server."""

    certificate: Path
    """The server's certificate, followed by the intermediate certificates."""
    key: Path
    """Its private key, not encrypted."""
    client_ca: Path | None = None
    """Certificates of the authorities that may sign client certificates; None: clients need no certificate."""


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


def _require_readable(file: Path) -> None:
    # OpenSSL would wait for the writer of a FIFO, and its errors do not name the file.
    try:
        read_regular_file(file, _MAX_BYTES)
    except UnreadableFileError as error:
        raise ConfigError(f"{file} {error}; TLS needs a PEM file that ephmon's user can read.") from error


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
