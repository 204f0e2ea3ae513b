"""How bad receivers answer: for `Namespace.call`, in a module that agents import fast."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from tests.delivery.receivers import PostReceiver, answering, closing, dripping, endless, saying, silent
from tests.faults.starts import HOOK_PORT

if TYPE_CHECKING:
    from tests.delivery.receivers import Answer

ANSWERS: dict[str, Answer] = {
    "silent": silent,
    "endless": endless,
    "dripping": dripping(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000),
    "redirecting": answering("HTTP/1.1 307 Temporary Redirect\nLocation: http://127.0.0.1:8080/"),
    "lying": saying(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "closing": closing,
    "failing": answering("HTTP/1.1 503 Service Unavailable\nRetry-After: never"),
    "refusing": answering("HTTP/1.1 400 Bad Request", b"\x1b[2J" * 1000),
    "busy": answering("HTTP/1.1 429 Too Many Requests\nRetry-After: 0"),
    "interim": saying(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "good": answering("HTTP/1.1 200 OK"),
}
"""By name, because an answer cannot be sent to another process."""


def open_receiver(answer: str, port: int = HOOK_PORT, certificate: tuple[str, str] | None = None) -> PostReceiver:
    """Return a receiver that answers so; for the agent."""
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*certificate)
    return PostReceiver(ANSWERS[answer], port=port, tls=tls)
