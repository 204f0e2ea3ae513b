"""Certificates for the tests, made by the openssl command."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from ephmon.http.tls import TlsFiles

if TYPE_CHECKING:
    from pathlib import Path


def openssl(*arguments: str | Path) -> None:
    """Run the command."""
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


def make_certificate(folder: Path, name: str, *, days: int = 1) -> TlsFiles:
    """A self-signed certificate of `name` for the loopback address, good as server, client and authority.

    It replaces files of that name, and is valid for so many days.
    """
    files = TlsFiles(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days)),
        *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", files.key, "-out", files.certificate),
    )
    return files
