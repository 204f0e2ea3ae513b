"""Which authorities the system trusts, for receivers with https: read again when they may have changed."""

from __future__ import annotations

import logging
import os
import ssl
import time
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.log import Line
from ephmon.regular_file import FileVersion, file_version

if TYPE_CHECKING:
    from collections.abc import Callable

RENEWAL_SECONDS = 3600.0
"""A directory of certificates looks the same if a file in it was overwritten, so it is read again after so long."""
RETRY_SECONDS = 60.0
"""The same for a store without certificates, which somebody may be about to mend."""

_log = logging.getLogger(__name__)


class TrustStore:
    """A TLS context for clients that follows the system's certificates. Lives in the delivery thread.

    If the file of certificates is gone or broken, the certificates that were read before stay in use.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._context: ssl.SSLContext | None = None
        self._certificates = 0
        """How many the file held; those of a directory are read one by one when they are needed."""
        self._is_broken = False
        """Whether the file holds none any more."""
        self._versions: tuple[FileVersion | None, ...] = ()
        self._renew_at = 0.0

    def expire(self) -> None:
        """Let the next use read the certificates again."""
        self._versions = ()

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection; reading the certificates takes some ten milliseconds."""
        versions = tuple(file_version(place) for place in _places())
        now = self._monotonic()
        if self._context is None or versions != self._versions or now >= self._renew_at:
            self._context = self._renewed(self._context, now)
            self._versions = versions
        return self._context

    def _renewed(self, previous: ssl.SSLContext | None, now: float) -> ssl.SSLContext:
        context = ssl.create_default_context()
        certificates = context.cert_store_stats()["x509"]
        was_broken, self._is_broken = self._is_broken, bool(self._certificates and not certificates)
        if previous is None or not self._is_broken:
            self._renew_at = now + RENEWAL_SECONDS
            self._certificates = certificates
            return context
        self._renew_at = now + RETRY_SECONDS
        if not was_broken:
            message = "The file of certificates that the system trusts holds none; those read before stay in use."
            log.write(_log, Line(logging.WARNING, message, {"file": _places()[0]}))
        return previous


def _places() -> tuple[str, ...]:
    """Return the file and the directories where OpenSSL looks (man 3 SSL_CTX_set_default_verify_paths)."""
    paths = ssl.get_default_verify_paths()
    file = os.environ.get(paths.openssl_cafile_env, paths.openssl_cafile)
    directories = os.environ.get(paths.openssl_capath_env, paths.openssl_capath)
    return (file, *directories.split(os.pathsep))
