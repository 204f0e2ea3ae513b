from __future__ import annotations

import dataclasses
import gzip

import pytest

from ephmon.http.publication import Body, Publication


def test_a_body_holds_its_content_plain_and_compressed() -> None:
    body = Body.of("ports = 1 ≤ 2\n")

    assert body.plain == b"ports = 1 \xe2\x89\xa4 2\n"
    assert gzip.decompress(body.gzipped) == body.plain


def test_equal_content_gives_equal_bytes() -> None:
    assert Body.of(b"same") == Body.of("same")
    assert Body.of(b"same").gzipped[4:8] == bytes(4)  # MTIME (RFC 1952, section 2.3)


def test_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        Body.of("\udcff")


def test_data_is_live_from_the_first_good_poll_until_the_moment_it_expires() -> None:
    publication = Publication.of(
        expires_at=15.0,
        metrics="",
        openmetrics="",
        expired_metrics="",
        expired_openmetrics="",
        pools="",
        exhaustions="",
        page="é",
        expired_page="é",
    )

    assert publication.is_live(14.9)
    assert not publication.is_live(15.0)
    assert not dataclasses.replace(publication, expires_at=None).is_live(0.0)
    assert publication.page == publication.expired_page == b"\xc3\xa9"
