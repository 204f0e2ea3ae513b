from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ephmon.delivery import trust_store
from ephmon.delivery.trust_store import RENEWAL_SECONDS, RETRY_SECONDS, TrustStore
from ephmon.regular_file import file_version
from tests.certificates import make_certificate

if TYPE_CHECKING:
    import ssl
    from pathlib import Path


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="bundle")
def _bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that OpenSSL takes for the system's certificates, with one in it, and no directory."""
    bundle = make_certificate(tmp_path, "bundle").certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return bundle


def names(context: ssl.SSLContext) -> list[str]:
    return [certificate["subject"][0][0][1] for certificate in context.get_ca_certs()]


def test_the_certificates_are_read_once_while_nothing_changes(bundle: Path) -> None:
    store = TrustStore(Clock())

    assert store.context() is store.context()
    assert names(store.context()) == [bundle.stem]


def test_a_file_of_certificates_that_changed_is_read_at_the_next_use(bundle: Path, tmp_path: Path) -> None:
    store = TrustStore(Clock())
    store.context()
    make_certificate(tmp_path, "new").certificate.rename(bundle)

    assert names(store.context()) == ["new"]


def test_a_directory_of_certificates_that_changed_is_read_at_the_next_use(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "no-file"))
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'none'}:{tmp_path}")
    store = TrustStore(Clock())
    before = store.context()
    bundle.rename(tmp_path / "1234abcd.0")

    assert store.context() is not before


def test_they_are_read_again_after_an_hour_whatever_they_look_like(bundle: Path) -> None:
    clock = Clock()
    store = TrustStore(clock)
    before = store.context()
    clock.now += RENEWAL_SECONDS - 1.0
    assert store.context() is before
    clock.now += 1.0

    assert names(store.context()) == [bundle.stem]
    assert store.context() is not before


def test_they_are_read_again_after_a_reload(bundle: Path) -> None:
    store = TrustStore(Clock())
    before = store.context()
    store.expire()

    assert names(store.context()) == [bundle.stem]
    assert store.context() is not before


def test_certificates_that_there_was_no_memory_for_are_read_at_the_next_use(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TrustStore(Clock())
    store.context()
    make_certificate(tmp_path, "new").certificate.rename(bundle)
    with monkeypatch.context() as patch:
        patch.setattr("ephmon.delivery.trust_store.ssl.create_default_context", _no_memory)
        with pytest.raises(MemoryError):
            store.context()

    assert names(store.context()) == ["new"]


def _no_memory() -> ssl.SSLContext:
    raise MemoryError


@pytest.mark.parametrize("content", [b"", b"not PEM", None])
def test_a_file_that_broke_leaves_the_old_certificates_in_use_until_it_is_mended(
    bundle: Path, tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    store = TrustStore(clock)
    before = store.context()
    if content is None:
        bundle.unlink()
    else:
        bundle.write_bytes(content)

    assert store.context() is before
    clock.now += RETRY_SECONDS
    assert store.context() is before
    assert caplog.messages == [
        "The file of certificates that the system trusts holds none; those read before stay in use."
    ]
    make_certificate(tmp_path, "mended").certificate.rename(bundle)
    assert names(store.context()) == ["mended"]


def test_a_broken_file_that_looks_the_same_is_tried_again_after_a_minute(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store = TrustStore(clock)
    store.context()
    good = bundle.read_bytes()
    bundle.write_bytes(b"")
    broken = file_version(bundle)
    store.context()
    bundle.write_bytes(good)
    monkeypatch.setattr(trust_store, "file_version", lambda place: broken if place == str(bundle) else None)
    before = store.context()
    clock.now += RETRY_SECONDS

    assert names(store.context()) == [bundle.stem]
    assert store.context() is not before
