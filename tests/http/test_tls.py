from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import ConfigError
from ephmon.http.tls import TlsFiles, build_tls_context
from tests.certificates import make_certificate, openssl

if TYPE_CHECKING:
    from pathlib import Path


def test_a_context_takes_tls_1_2_and_later_and_asks_clients_for_nothing(tmp_path: Path) -> None:
    context = build_tls_context(make_certificate(tmp_path, "server"))

    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.verify_mode == ssl.CERT_NONE


def test_with_an_authority_clients_must_have_a_certificate(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server")

    context = build_tls_context(TlsFiles(certificate=files.certificate, key=files.key, client_ca=files.certificate))

    assert context.verify_mode == ssl.CERT_REQUIRED


def refusal(files: TlsFiles) -> str:
    with pytest.raises(ConfigError) as caught:
        build_tls_context(files)
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server")
    missing = tmp_path / "missing.pem"

    for broken in (
        TlsFiles(certificate=missing, key=files.key),
        TlsFiles(certificate=files.certificate, key=missing),
        TlsFiles(certificate=files.certificate, key=files.key, client_ca=missing),
    ):
        assert refusal(broken).startswith(f"{missing} cannot be read: No such file or directory; ")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    assert refusal(TlsFiles(certificate=fifo, key=fifo)).startswith(f"{fifo} is a FIFO, not a regular file; ")


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    one, other = make_certificate(tmp_path, "one"), make_certificate(tmp_path, "other")

    assert refusal(TlsFiles(certificate=one.certificate, key=other.key)) == (
        f"{other.key} is not the key of the certificate in {one.certificate}."
    )


def test_an_encrypted_key_is_refused_without_asking_for_its_passphrase(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server")
    encrypted = tmp_path / "encrypted.pem"
    openssl("ec", "-in", files.key, "-aes128", "-passout", "pass:secret", "-out", encrypted)

    assert refusal(TlsFiles(certificate=files.certificate, key=encrypted)).startswith(f"{encrypted} is encrypted")


def test_files_that_are_no_pem_are_named(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server")
    empty = tmp_path / "empty.pem"
    empty.touch()

    assert refusal(TlsFiles(certificate=empty, key=files.key)) == (
        f"{empty} and {files.key} are not a certificate and its key in PEM form."
    )
    assert refusal(TlsFiles(certificate=files.certificate, key=files.key, client_ca=empty)) == (
        f"{empty} contains no certificate in PEM form."
    )
