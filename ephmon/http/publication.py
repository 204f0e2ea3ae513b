"""The bytes that the HTTP side may send, rendered once for each poll.

A request never renders and never reads the kernel: it picks one of these bodies and sends it. Each of them exists
twice, for live data and for data that has expired, so that the HTTP side can tell the truth by itself when nobody
renders any more.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Self

# Level 9 takes twelve times as long to make metrics a fifth smaller.
_GZIP_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Body:
    """One body in both encodings that clients ask for."""

    plain: bytes
    gzipped: bytes

    @classmethod
    def of(cls, content: str | bytes) -> Self:
        """Encode `content` (text becomes UTF-8) and compress it.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate, which no label or name may carry.
        """
        plain = content.encode() if isinstance(content, str) else content
        # No timestamp, so that equal content gives equal bytes.
        return cls(plain=plain, gzipped=gzip.compress(plain, _GZIP_LEVEL, mtime=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Everything that the HTTP side says until the next poll."""

    expires_at: float | None
    """When the data must no longer be sent as live, in seconds of the monotonic clock; None: no poll was good yet."""
    metrics: Body
    """Prometheus text format 0.0.4."""
    openmetrics: Body
    """OpenMetrics text format 1.0.0."""
    expired_metrics: Body
    """What `metrics` becomes at `expires_at`: self-metrics and alert state only, with `poll_success` 0."""
    expired_openmetrics: Body
    pools: Body
    """The JSON of `/api/v1/pools`."""
    exhaustions: Body
    """The JSON of `/api/v1/exhaustions`."""
    page: bytes
    """The HTML of `/`."""
    expired_page: bytes
    """What `page` becomes at `expires_at`: it must say that its figures are old."""

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
        """Build a publication from what the renderers return; raises what `Body.of` raises."""
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
        """Whether the data may be sent as live at `now`, on the clock of `expires_at`."""
        return self.expires_at is not None and now < self.expires_at
