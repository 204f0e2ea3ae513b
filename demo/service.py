"""What the demo asks the programs over HTTP, and the pager that Alertmanager calls."""

from __future__ import annotations

import http.client
import json
import queue
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from demo.stage import DemoError

EPHMON, PROMETHEUS, ALERTMANAGER, HAPROXY, PAGER = 19100, 9090, 9093, 8404, 9095
_SECONDS = 5.0


def get(port: int, path: str) -> str | None:
    """Return what a program on this host answers, or None while it does not, or not with status 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if reply.status == http.HTTPStatus.OK else None


def get_json(port: int, path: str) -> Any:
    """Return the document that a program on this host answers, or None while it does not."""
    body = get(port, path)
    return None if body is None else json.loads(body)


def value_of(text: str, series: str) -> float:
    """Return a value in Prometheus's text format; the series is named as it stands there, with its labels.

    Raises:
        DemoError: It is not there.
    """
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise DemoError(f"There is no {series}; `--keep` keeps the logs.")
    return float(found[1])


@dataclass(frozen=True, slots=True)
class Page:
    """One alert of which Alertmanager told."""

    status: str
    """`firing` or `resolved`."""
    labels: dict[str, str]
    annotations: dict[str, str]


class Pager:
    """Takes what Alertmanager sends to a webhook; a context manager."""

    def __init__(self) -> None:
        self._pages: queue.SimpleQueue[Page] = queue.SimpleQueue()
        pages = self._pages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in document["alerts"]:
                    pages.put(Page(alert["status"], alert["labels"], alert["annotations"]))
                self.send_response(http.HTTPStatus.OK)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing: the demo tells of what came."""

        self._server = ThreadingHTTPServer(("127.0.0.1", PAGER), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pages(self) -> list[Page]:
        """Return what came since the last time, in its order."""
        found = []
        while not self._pages.empty():
            found.append(self._pages.get())
        return found
