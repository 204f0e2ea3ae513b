r"""Text that others chose, made fit to be shown: names of processes, cgroups and namespaces, and values of files.

Whoever runs a program chooses its name, byte by byte. Unchanged it could send commands to a terminal (control
characters), forge lines of a log (newlines), or not be UTF-8 at all, which Prometheus and JSON refuse.
`str.isprintable` is false for all of these, lone surrogates included.

- `printable` puts U+FFFD in place of each such character: for labels and text.
- `escaped` writes it as `\n` or `\xff`, so that one can still read what was there: for names of programs.
- `ephmon.errors.quote` also quotes and cuts: for one line of a message.
"""

from __future__ import annotations

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str | bytes) -> str:
    """Return text with U+FFFD in place of every character that is not printable; bytes are read as UTF-8."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else REPLACEMENT for character in text)


def escaped(name: bytes) -> str:
    r"""Return a name with `\xff`, `\n`, `\u200b` and the like in place of what is not printable, and `\\` for `\`."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(
        character if character.isprintable() and character != "\\" else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8, as "surrogateescape" writes it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
