"""What the HTTP server may send until the next poll.

A request chooses one of these bodies and never reads the kernel. A body is rendered when it is first asked for, and
kept until the next publication. So nobody pays for what nobody reads, and no client can make it cost more than once a
poll. Each exists for live data and for expired data, so that the server stays honest by itself if polls stop.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

# Level 9 takes twelve times as long and makes metrics only a fifth smaller.
_GZIP_LEVEL = 1

Content = str | bytes | Callable[[], str | bytes]
"""What a body consists of, or what renders it. Text becomes UTF-8."""


class Body:
    """One body, plain and compressed, each made when it is first asked for.

    Whoever asks meets what the renderer raises, and so does the next one. Text with a lone surrogate, which no label or
    name may contain, raises UnicodeEncodeError.
    """

    def __init__(self, content: Content) -> None:
        self._content = content

    @cached_property
    def plain(self) -> bytes:
        """The bytes as they are."""
        content = self._content() if callable(self._content) else self._content
        return content.encode() if isinstance(content, str) else content

    @cached_property
    def gzipped(self) -> bytes:
        """The bytes compressed, without a timestamp, so that equal content gives equal bytes."""
        return gzip.compress(self.plain, _GZIP_LEVEL, mtime=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Everything that the HTTP server sends until the next poll."""

    expires_at: float | None
    """When the data stops being live, in seconds of the monotonic clock; None before the first successful poll."""
    metrics: Body
    """Prometheus text format 0.0.4."""
    openmetrics: Body
    """OpenMetrics text format 1.0.0."""
    expired_metrics: Body
    """Replaces `metrics` from `expires_at` on: self-metrics and alert state only, with `poll_success` 0."""
    expired_openmetrics: Body
    pools: Body
    """The JSON of `/api/v1/pools`."""
    exhaustions: Body
    """The JSON of `/api/v1/exhaustions`."""
    page: Body
    """The HTML of `/`."""
    expired_page: Body
    """Replaces `page` from `expires_at` on and says that its figures are old."""

    @classmethod
    def of(
        cls,
        *,
        expires_at: float | None,
        metrics: Content,
        openmetrics: Content,
        expired_metrics: Content,
        expired_openmetrics: Content,
        pools: Content,
        exhaustions: Content,
        page: Content,
        expired_page: Content,
    ) -> Self:
        """Make bodies of what the renderers return, or of the renderers."""
        return cls(
            expires_at=expires_at,
            metrics=Body(metrics),
            openmetrics=Body(openmetrics),
            expired_metrics=Body(expired_metrics),
            expired_openmetrics=Body(expired_openmetrics),
            pools=Body(pools),
            exhaustions=Body(exhaustions),
            page=Body(page),
            expired_page=Body(expired_page),
        )

    def is_live(self, now: float) -> bool:
        """Return whether the data is live at `now`, on the clock of `expires_at`."""
        return self.expires_at is not None and now < self.expires_at
