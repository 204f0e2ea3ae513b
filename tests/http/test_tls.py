from __future__ import annotations

import logging
import os
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import ConfigError
from ephmon.http.tls import RETRY_SECONDS, RenewedTls, TlsFiles, build_tls_context, certificate_expiry
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


# --- renewal ------------------------------------------------------------------------------------------------------

DAY = 86400.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_context_stays_the_same_while_its_files_do(tmp_path: Path) -> None:
    tls = RenewedTls(make_certificate(tmp_path, "server"), monotonic=Clock())

    assert tls.context() is tls.context()


def test_a_renewed_certificate_is_used_at_once_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tls = RenewedTls(make_certificate(tmp_path, "server"), monotonic=Clock())
    before = tls.context()
    make_certificate(tmp_path, "server", days=9)

    assert tls.context() is tls.context() is not before
    assert tls.expires_at == pytest.approx(time.time() + 9 * DAY, abs=60)
    assert caplog.messages == ["The TLS files changed, and the new ones are in use."]


def test_a_folder_of_files_that_is_replaced_by_a_link_is_seen(tmp_path: Path) -> None:
    """As Kubernetes does with a Secret: the files are links through a link that is replaced."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_certificate(tmp_path / name, "server")
    link = tmp_path / "data"
    link.symlink_to("one")
    files = TlsFiles(certificate=link / "server.pem", key=link / "server.key")
    tls = RenewedTls(files, monotonic=Clock())
    before = tls.context()
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(link)

    assert tls.context() is not before


def test_files_that_cannot_be_used_leave_the_old_ones_in_use_until_they_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    files = make_certificate(tmp_path, "server")
    other = make_certificate(tmp_path, "other")
    tls = RenewedTls(files, monotonic=clock)
    before, expires_before = tls.context(), tls.expires_at
    files.certificate.write_bytes(other.certificate.read_bytes())  # the key follows a moment later

    assert tls.context() is before
    clock.now += RETRY_SECONDS
    assert tls.context() is before
    assert tls.expires_at == expires_before
    files.key.write_bytes(other.key.read_bytes())
    assert tls.context() is not before
    mismatch = f"{files.key} is not the key of the certificate in {files.certificate}."
    assert caplog.messages == [
        f"The TLS files changed, and the old ones stay in use: {mismatch}",
        "The TLS files changed, and the new ones are in use.",
    ]


@pytest.mark.parametrize("broken", ["certificate", "key", "client_ca"])
@pytest.mark.parametrize("content", [b"", b"not PEM", None])
def test_whichever_file_breaks_the_old_ones_stay_in_use(tmp_path: Path, broken: str, content: bytes | None) -> None:
    made = make_certificate(tmp_path, "server")
    authority = make_certificate(tmp_path, "authority").certificate
    tls = RenewedTls(TlsFiles(certificate=made.certificate, key=made.key, client_ca=authority), monotonic=Clock())
    before = tls.context()
    file = {"certificate": made.certificate, "key": made.key, "client_ca": authority}[broken]
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    assert tls.context() is before


def test_files_that_look_the_same_are_tried_again_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    files = make_certificate(tmp_path, "server")
    tls = RenewedTls(files, monotonic=clock)
    before = tls.context()
    with monkeypatch.context() as patch:
        patch.setattr("ephmon.regular_file.os.open", _refuse)
        os.utime(files.key)
        assert tls.context() is before
    clock.now += RETRY_SECONDS - 1.0
    assert tls.context() is before
    clock.now += 1.0

    assert tls.context() is not before
    [message] = caplog.messages
    assert message.startswith(
        f"The TLS files changed, and the old ones stay in use: {files.certificate} cannot be read: Too many open files;"
    )


def test_files_that_there_was_no_memory_for_are_tried_again_at_the_next_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = RenewedTls(make_certificate(tmp_path, "server"), monotonic=Clock())
    before = tls.context()
    make_certificate(tmp_path, "server")
    with monkeypatch.context() as patch:
        patch.setattr("ephmon.http.tls.read_regular_file", _no_memory)
        with pytest.raises(MemoryError):
            tls.context()

    assert tls.context() is not before


def _no_memory(*_: object) -> bytes:
    raise MemoryError


def _refuse(*_: object) -> int:
    raise OSError(24, "Too many open files")


# --- expiry -------------------------------------------------------------------------------------------------------


def signed_by_an_authority(folder: Path, days: int) -> TlsFiles:
    """A certificate that is not its own authority, with that of the authority, which is valid for longer, below it."""
    authority = make_certificate(folder, "authority", days=99)
    files = TlsFiles(certificate=folder / "chain.pem", key=folder / "leaf.key")
    request, leaf, extensions = folder / "leaf.csr", folder / "leaf.pem", folder / "extensions"
    extensions.write_text("basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n", encoding="utf-8")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=leaf", "-keyout", files.key, "-out", request)
    openssl(
        *("x509", "-req", "-in", request, "-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial"),
        *("-days", str(days), "-extfile", extensions, "-out", leaf),
    )
    files.certificate.write_bytes(leaf.read_bytes() + authority.certificate.read_bytes())
    return files


@pytest.mark.parametrize("days", [0, 7])
def test_the_expiry_is_that_of_the_first_certificate_even_if_it_has_passed(tmp_path: Path, days: int) -> None:
    assert certificate_expiry(signed_by_an_authority(tmp_path, days)) == pytest.approx(time.time() + days * DAY, abs=60)


def test_the_expiry_is_known_without_the_authority(tmp_path: Path) -> None:
    files = signed_by_an_authority(tmp_path, 7)
    files.certificate.write_bytes((tmp_path / "leaf.pem").read_bytes())

    assert certificate_expiry(files) == pytest.approx(time.time() + 7 * DAY, abs=60)


def test_the_expiry_of_what_is_no_certificate_is_not_known(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()

    assert certificate_expiry(TlsFiles(certificate=empty, key=empty)) is None
