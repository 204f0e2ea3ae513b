"""Names that others choose: of programs, of cgroups. Whatever they are made of, they can be shown."""

from __future__ import annotations

import json
import logging

from ephmon.errors import quote
from ephmon.facts.foreign_text import escaped, printable
from ephmon.log.formats import FIELDS, JsonFormatter, KeyValueFormatter
from ephmon.model.owners.names import LONGEST_NAME, OwnerKind, owner_of
from ephmon.outputs.text.wording import one_line
from tests.fuzz.target import Target

_QUOTE_LIMIT = 60
_STYLES = (KeyValueFormatter(journal=True), KeyValueFormatter(journal=False), JsonFormatter())
_LONGEST_ESCAPE = 10
"""Characters: `\\U0001f600`."""


def check_names(data: bytes) -> None:
    """Show an input as the name of a program and as the path of a cgroup."""
    path = data.decode("utf-8", "surrogateescape")
    owner = owner_of(path, 33)
    assert owner is not None
    assert owner.kind is OwnerKind.UID or 0 < len(owner.name) <= LONGEST_NAME
    name = escaped(data)
    for shown in (owner.name, name, printable(data), printable(path), one_line(path), quote(path, _QUOTE_LIMIT)):
        assert shown.isprintable()
        shown.encode()  # which lone surrogates refuse
    assert len(quote(path, _QUOTE_LIMIT)) <= _LONGEST_ESCAPE * (_QUOTE_LIMIT + 1)
    assert len(name) <= _LONGEST_ESCAPE * len(data)
    _check_log({"name": name, "path": path})


def _check_log(fields: dict[str, str]) -> None:
    """A record stays one line, and JSON gives back what it was given."""
    record = logging.makeLogRecord({"msg": "A program failed.", FIELDS: fields, "created": 0.0})
    for style in _STYLES:
        assert style.format(record).isprintable()
    written = json.loads(_STYLES[-1].format(record))
    assert {key: written[key] for key in fields} == fields


TARGETS = (
    Target(
        name="names",
        parsers=(
            "facts.foreign_text.printable",
            "facts.foreign_text.escaped",
            "model.owners.names.owner_of",
            "errors.quote",
            "log.formats",
        ),
        check=check_names,
        seeds=lambda: [
            b"haproxy",
            b"nginx: worker\n",
            b"\xff\xfe\x1b[31m",
            "K\N{LATIN SMALL LETTER O WITH DIAERESIS}ln\u200b".encode(),
            b"/system.slice/haproxy.service",
            b"/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope",
            b"/user.slice/user-1000.slice/session-3.scope",
            b"/system.slice/docker-%s.scope" % (b"0123456789abcdef" * 4),
            b"/kubepods.slice/kubepods-burstable.slice/pod1/cri-containerd-%s.scope" % (b"fedcba9876543210" * 4),
            b"/lxc.payload.web/../x",
        ],
        max_bytes=256,
        executions=2_000,
    ),
)
