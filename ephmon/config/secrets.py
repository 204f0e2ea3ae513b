"""Reads secrets of the configuration that are kept in files of their own.

No message repeats what such a file contains, nor a path that leads to no file: it may be the secret itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.config.file import quote_path, read_text
from ephmon.config.scalars import SECRET_URL
from ephmon.errors import ConfigError

if TYPE_CHECKING:
    from ephmon.config.settings import HttpConfig, WebhookConfig

SHORTEST_TOKEN = 16
"""In characters: too many possibilities to guess, if the token is random."""
LONGEST_TOKEN = 1024
_TOKEN = re.compile(r"[!-~]+")


def read_webhook_url(webhook: WebhookConfig) -> str:
    """Return the URL of the webhook, read from `url_file` if that is set; "" if there is no webhook.

    Raises:
        ConfigError: The file cannot be read or does not contain exactly one URL; one sentence that names the file if
            there is one.
    """
    if not webhook.url_file:
        return webhook.url
    text = _read("notify.webhook.url_file", webhook.url_file)
    try:
        url = SECRET_URL.parse(text)
    except ValueError as error:
        raise ConfigError(f"{quote_path(webhook.url_file)}: notify.webhook.url_file: {error}") from None
    if not url:
        raise ConfigError(f"{quote_path(webhook.url_file)}: notify.webhook.url_file: the file is empty; write the URL")
    return url


def read_token(http: HttpConfig) -> str:
    """Return the token that HTTP clients must show, "" if they need none.

    Raises:
        ConfigError: The file cannot be read or does not contain exactly one token; one sentence that names the file
            if there is one.
    """
    if not http.token_file:
        return ""
    token = _read("http.token_file", http.token_file)
    mistake = ""
    if not token:
        mistake = "the file is empty; write a token"
    elif not _TOKEN.fullmatch(token):
        mistake = "the token has blanks or characters that are not ASCII; write one without them"
    elif not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        side = f"fewer than {SHORTEST_TOKEN}" if len(token) < SHORTEST_TOKEN else f"more than {LONGEST_TOKEN}"
        mistake = f"the token has {side} characters; write another"
    if mistake:
        raise ConfigError(f"{quote_path(http.token_file)}: http.token_file: {mistake}, such as `openssl rand -hex 32`")
    return token


def _read(key: str, path: str) -> str:
    if not os.path.lexists(path):
        raise ConfigError(f"{key}: there is no such file; write the secret to a file and its path here")
    return read_text(Path(path)).strip()
