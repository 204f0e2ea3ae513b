"""The command: `python -m demo [--keep] [--transcript]`, which goes into namespaces of its own first."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NoReturn

from demo.stage import DemoError, Stage
from demo.story import tell
from demo.timeline import Timeline, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_INSIDE = "EPHMON_DEMO_INSIDE"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(prog="script/demo", description="Shows how ports run out, and what ephmon says.")
    parser.add_argument("--keep", action="store_true", help="keep the configuration files and logs, and say where")
    parser.add_argument("--transcript", action="store_true", help="print the block of docs/demo.md when it is over")
    options = parser.parse_args(arguments)
    if _INSIDE not in os.environ:
        _enter(arguments)
    for number in _ENDING:
        signal.signal(number, _stop)
    return _perform(keeps=options.keep, transcribes=options.transcript)


def _enter(arguments: Sequence[str]) -> NoReturn:
    """Become this program in fresh namespaces, or end after saying why not."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = ["unshare", *user, "--net", "--mount", "--propagation", "private", "--"]
    tried = subprocess.run([*unshare, "true"], capture_output=True, encoding="utf-8", check=False)
    if tried.returncode != 0:
        sys.exit(f"The demo needs namespaces of its own, and may not make them: {tried.stderr.strip()}")
    again = [sys.executable, "-P", "-m", "demo", *arguments]
    path = os.pathsep.join(filter(None, sys.path))
    os.execvpe(unshare[0], [*unshare, *again], {**os.environ, _INSIDE: "1", "PYTHONPATH": path})


def _perform(*, keeps: bool, transcribes: bool) -> int:
    timeline, stage = Timeline(sys.stderr if transcribes else sys.stdout), Stage()
    status = 0
    try:
        tell(stage, timeline)
    except DemoError as error:
        print(error, file=sys.stderr)
        status = 1
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        stage.close()
        if keeps and stage.directory.exists():
            print(f"The files are in {stage.keep()}.", file=sys.stderr)
    if transcribes and status == 0:
        print(shortened(timeline.said), end="")
    return status


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
