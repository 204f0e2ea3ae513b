"""Secrets of the configuration that stand in files of their own, read when they are needed.

What such a file holds stands in no message.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.config.document import read_text, shown_path
from ephmon.config.scalars import SECRET_URL
from ephmon.errors import ConfigError

if TYPE_CHECKING:
    from ephmon.config.settings import WebhookConfig


def read_webhook_url(webhook: WebhookConfig) -> str:
    """Return the URL of the webhook, from its file if it stands in one; "" where there is no webhook.

    Raises:
        ConfigError: The file cannot be read or holds something else than one URL; one sentence that names the file.
    """
    if not webhook.url_file:
        return webhook.url
    text = read_text(Path(webhook.url_file)).strip()
    try:
        url = SECRET_URL.parse(text)
    except ValueError as error:
        raise ConfigError(f"{shown_path(webhook.url_file)}: notify.webhook.url_file: {error}") from None
    if not url:
        raise ConfigError(f"{shown_path(webhook.url_file)}: notify.webhook.url_file: the file is empty; write the URL")
    return url
