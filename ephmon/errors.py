"""The errors that ephmon raises on purpose, named for who can fix them.

Each carries one plain sentence that names what is wrong and, where there is one, the fix. Any other exception that
escapes is a defect of ephmon.
"""


class EphmonError(Exception):
    """The base of all errors that ephmon raises on purpose."""


class UsageError(EphmonError):
    """The command line asks for something impossible: exit status 2."""


class ConfigError(EphmonError):
    """The configuration is wrong: exit status 2. The message has one line with one sentence for each mistake."""


class KernelError(EphmonError):
    """The kernel could not be read, so there is no answer: a failed poll, never a zero.

    `reason` is one word of a closed set, for the label of `ephmon_poll_failures_total`.
    """

    reason = "kernel"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


def quote(text: str, limit: int = 60) -> str:
    """Return text of unknown origin so that it fits into one line of a message.

    A word of printable ASCII stays as it is, anything else is quoted and escaped. What is longer than `limit`
    characters is cut, and "..." takes the place of the rest.
    """
    cut = text if len(text) <= limit else text[:limit] + "..."
    is_plain_word = cut != "" and all("!" <= character <= "~" for character in cut)
    return cut if is_plain_word else repr(cut)
