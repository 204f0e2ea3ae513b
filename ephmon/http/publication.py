"""The bytes that the HTTP server may send, rendered once after each poll.

A request never renders and never reads the kernel: it chooses one of these bodies. Each exists for live data and for
expired data, so that the server stays honest by itself if polls stop.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Self

# Level 9 takes twelve times as long and makes metrics only a fifth smaller.
_GZIP_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Body:
    """One body, plain and compressed."""

    plain: bytes
    gzipped: bytes

    @classmethod
    def of(cls, content: str | bytes) -> Self:
        """Encode `content` (text becomes UTF-8) and compress it.

        Raises:
            UnicodeEncodeError: The text contains a lone surrogate, which no label or name may contain.
        """
        plain = content.encode() if isinstance(content, str) else content
        # Without a timestamp, so that equal content gives equal bytes.
        return cls(plain=plain, gzipped=gzip.compress(plain, _GZIP_LEVEL, mtime=0))


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
    page: bytes
    """The HTML of `/`."""
    expired_page: bytes
    """Replaces `page` from `expires_at` on and says that its figures are old."""

    @classmethod
    def of(
        cls,
        *,
        expires_at: float | None,
        metrics: str | bytes,
        openmetrics: str | bytes,
        expired_metrics: str | bytes,
        expired_openmetrics: str | bytes,
        pools: str | bytes,
        exhaustions: str | bytes,
        page: str | bytes,
        expired_page: str | bytes,
    ) -> Self:
        """Encode what the renderers return.

        Raises:
            UnicodeEncodeError: As `Body.of` does.
        """
        return cls(
            expires_at=expires_at,
            metrics=Body.of(metrics),
            openmetrics=Body.of(openmetrics),
            expired_metrics=Body.of(expired_metrics),
            expired_openmetrics=Body.of(expired_openmetrics),
            pools=Body.of(pools),
            exhaustions=Body.of(exhaustions),
            page=page.encode() if isinstance(page, str) else page,
            expired_page=expired_page.encode() if isinstance(expired_page, str) else expired_page,
        )

    def is_live(self, now: float) -> bool:
        """Return whether the data is live at `now`, on the clock of `expires_at`."""
        return self.expires_at is not None and now < self.expires_at
