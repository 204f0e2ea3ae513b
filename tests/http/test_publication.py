from __future__ import annotations

import dataclasses
import gzip

import pytest

from ephmon.http.publication import Body, Publication


def test_a_body_holds_its_content_plain_and_compressed() -> None:
    body = Body("ports = 1 ≤ 2\n")

    assert body.plain == b"ports = 1 \xe2\x89\xa4 2\n"
    assert gzip.decompress(body.gzipped) == body.plain


def test_equal_content_gives_equal_bytes() -> None:
    assert Body(b"same").gzipped == Body("same").gzipped
    assert Body(b"same").gzipped[4:8] == bytes(4)  # MTIME (RFC 1952, section 2.3)


def test_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        _ = Body("\udcff").plain


def test_a_body_is_rendered_when_it_is_asked_for_and_then_kept() -> None:
    rendered = []

    def render() -> str:
        rendered.append("once")
        return "the page"

    body = Body(render)
    before = list(rendered)

    assert before == []
    assert [body.gzipped, body.plain, body.plain] == [Body("the page").gzipped, b"the page", b"the page"]
    assert rendered == ["once"]


def test_what_a_renderer_raises_everybody_meets_who_asks_for_its_body() -> None:
    def fail() -> str:
        raise ZeroDivisionError

    body = Body(fail)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            _ = body.plain


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
    assert publication.page.plain == publication.expired_page.plain == b"\xc3\xa9"
