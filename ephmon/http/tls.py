"""The server side's TLS settings, made from the files that the configuration names."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ephmon.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a TLS server."""

    certificate: Path
    """The server's certificate, followed by the intermediate ones."""
    key: Path
    """Its private key, not encrypted."""
    client_ca: Path | None = None
    """Certificates of the authorities that clients must be signed by; None: clients need no certificate."""


def build_tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Read the files into a context for TLS 1.2 and later.

    Raises:
        ConfigError: a file cannot be used; one sentence that names it.
    """
    for file in (files.certificate, files.key, files.client_ca):
        if file is not None:
            _require_readable(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could make the server spend a handshake's work again and again on one connection (OpenSSL before 3.0).
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_certificate(context, files)
    if files.client_ca is not None:
        _load_client_ca(context, files.client_ca)
    return context


def _require_readable(file: Path) -> None:
    # Opening a FIFO would wait for its writer, so what is not a plain file is not opened.
    try:
        if not file.is_file():
            what = "is not a regular file" if file.exists() else "does not exist"
            raise ConfigError(f"{file} {what}: TLS needs a PEM file there.")
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): let ephmon's user read it.") from error


def _load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    def refuse_to_ask() -> str:
        # Without this, OpenSSL would ask for the passphrase on the terminal and wait.
        raise ConfigError(f"{files.key} is encrypted: ephmon cannot ask for a passphrase, so store the key without.")

    try:
        context.load_cert_chain(files.certificate, files.key, password=refuse_to_ask)
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
        raise ConfigError(f"{client_ca} holds no certificate in PEM form.") from error
    context.verify_mode = ssl.CERT_REQUIRED
