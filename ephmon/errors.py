"""The errors that ephmon raises on purpose, named for whose fault they are.

Each carries one plain sentence that names the place and, where there is one, the fix. Anything else that escapes is a
defect of ephmon.
"""


class EphmonError(Exception):
    """The base of all errors that ephmon raises on purpose."""


class UsageError(EphmonError):
    """The command line asks for something that cannot be: exit status 2."""


class ConfigError(EphmonError):
    """The configuration is wrong: exit status 2. The message holds one sentence a line, a line for each mistake."""


class KernelError(EphmonError):
    """The kernel could not be read, so there is no answer: a failed poll, never a zero.

    `reason` is one word of a closed set, for the label of `ephmon_poll_failures_total`.
    """

    reason = "kernel"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


def shown(text: str, limit: int = 60) -> str:
    """Return foreign text fit for one line of a message: one plain word as it is, anything else quoted and escaped.

    At most `limit` characters of it, the rest replaced by "...".
    """
    cut = text if len(text) <= limit else text[:limit] + "..."
    plain = cut != "" and all("!" <= character <= "~" for character in cut)
    return cut if plain else repr(cut)
