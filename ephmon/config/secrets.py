"""Reads secrets of the configuration that are kept in files of their own.

No message repeats what such a file contains.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.config.file import quote_path, read_text
from ephmon.config.scalars import SECRET_URL
from ephmon.errors import ConfigError

if TYPE_CHECKING:
    from ephmon.config.settings import WebhookConfig


def read_webhook_url(webhook: WebhookConfig) -> str:
    """Return the URL of the webhook, read from `url_file` if that is set; "" if there is no webhook.

    Raises:
        ConfigError: The file cannot be read or does not contain exactly one URL; one sentence that names the file.
    """
    if not webhook.url_file:
        return webhook.url
    text = read_text(Path(webhook.url_file)).strip()
    try:
        url = SECRET_URL.parse(text)
    except ValueError as error:
        raise ConfigError(f"{quote_path(webhook.url_file)}: notify.webhook.url_file: {error}") from None
    if not url:
        raise ConfigError(f"{quote_path(webhook.url_file)}: notify.webhook.url_file: the file is empty; write the URL")
    return url
