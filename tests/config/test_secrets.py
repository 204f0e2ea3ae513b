"""Secrets that stand in files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ephmon.config.secrets import read_token, read_webhook_url
from ephmon.config.settings import HttpConfig, WebhookConfig
from ephmon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

URL = "https://example.net/hook?key=5ecret"


def test_without_a_file_the_url_is_the_one_in_the_configuration() -> None:
    assert read_webhook_url(WebhookConfig(url=URL)) == URL
    assert read_webhook_url(WebhookConfig()) == ""


@pytest.mark.parametrize("text", [URL, f"{URL}\n", f"\n  {URL}\r\n"])
def test_the_file_holds_the_url_and_nothing_else_but_blanks(tmp_path: Path, text: str) -> None:
    file = tmp_path / "webhook"
    file.write_text(text, encoding="utf-8")

    assert read_webhook_url(WebhookConfig(url_file=str(file))) == URL


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "notify.webhook.url_file: the file is empty; write the URL"),
        (b"\n", "notify.webhook.url_file: the file is empty; write the URL"),
        (b"example.net/5ecret", "notify.webhook.url_file: the URL does not begin with http:// or https://"),
        (b"https://example.net/5ecret\nhttps://example.net/5ecret", "contains a character that URLs do not allow"),
        (b"https://example.net/\xff5ecret", "is not UTF-8"),
        (b"https://example.net/5ecret#", "has a fragment"),
    ],
)
def test_a_file_with_anything_else_is_an_error_that_names_it_and_not_its_content(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    file = tmp_path / "webhook"
    file.write_bytes(content)

    with pytest.raises(ConfigError) as raised:
        read_webhook_url(WebhookConfig(url_file=str(file)))

    assert sentence in str(raised.value)
    assert str(file) in str(raised.value)
    assert "5ecret" not in str(raised.value)


def test_a_pipe_is_an_error(tmp_path: Path) -> None:
    """It would be waited for."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="/fifo: the file is a FIFO"):
        read_webhook_url(WebhookConfig(url_file=str(tmp_path / "fifo")))


TOKEN = "5ecret-5ecret-5ecret"


def test_without_a_file_there_is_no_token() -> None:
    assert read_token(HttpConfig()) == ""


@pytest.mark.parametrize("text", [TOKEN, f"{TOKEN}\n", f"\n  {TOKEN}\r\n", "x" * 16, "~!:@" * 256])
def test_the_file_holds_the_token_and_nothing_else_but_blanks(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")

    assert read_token(HttpConfig(token_file=str(file))) == text.strip()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "http.token_file: the file is empty; write a token, such as `openssl rand -hex 32`"),
        (b"\n", "the file is empty"),
        (b"5ecret", "the token has fewer than 16 characters; write another, such as `openssl rand -hex 32`"),
        (b"5ecret" * 200, "the token has more than 1024 characters"),
        (b"5ecret-5ecret 5ecret", "the token has blanks"),
        (b"5ecret-5ecret-5ecret\n5ecret-5ecret-5ecret", "the token has blanks"),
        ("5ecret-5ecret-é".encode(), "characters that are not ASCII"),
        (b"5ecret-5ecret-\xff", "is not UTF-8"),
    ],
)
def test_a_token_file_with_anything_else_is_an_error_that_names_it_and_not_its_content(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)

    with pytest.raises(ConfigError) as raised:
        read_token(HttpConfig(token_file=str(file)))

    assert sentence in str(raised.value)
    assert str(file) in str(raised.value)
    assert "5ecret" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("notify.webhook.url_file", lambda path: read_webhook_url(WebhookConfig(url_file=path))),
        ("http.token_file", lambda path: read_token(HttpConfig(token_file=path))),
    ],
)
def test_a_path_that_leads_nowhere_is_not_repeated_because_it_may_be_the_secret(
    key: str, read: Callable[[str], str]
) -> None:
    """The path of a webhook's URL begins with a slash, and a token may."""
    with pytest.raises(ConfigError) as raised:
        read("/services/T0/5ecret")

    assert str(raised.value) == f"{key}: there is no such file; write the secret to a file and its path here"
