"""Which tests run a second time, on the built wheel and with the oldest dependencies: those that can tell a difference.

`pytest --on-packages` leaves out the others. Every test file has to be in one of the two tables below, or no test runs
at all, so that a new one is not left out by accident.
"""

from __future__ import annotations

AGAIN = {
    "config": "PyYAML parses the configuration",
    "daemon/test_loop.py": "runs the installed daemon with all that it serves",
    "daemon/test_owner_watch.py": "psutil lists processes for a daemon that runs",
    "delivery/test_real_alertmanager.py": "the installed modules send alerts",
    "fuzz/test_corpora.py": "PyYAML and tornado answer the corpus",
    "http": "tornado has the streams and parses heads",
    "log": "tornado logs too",
    "kernel/proc/test_processes.py": "psutil lists processes",
    "outputs/metrics": "prometheus-client renders the metrics",
    "test_architecture.py": "the wheel has all modules, and imports what it may",
    "test_cli.py": "runs the installed program",
}
"""Files and folders below tests/, and what of a dependency or of the wheel they try."""

ONCE = {
    "daemon": "threads, signals and files of the standard library; `test_loop.py` runs the daemon again",
    "commands": "the command line, which `test_cli.py` runs again as it is installed",
    "delivery": "sockets, TLS and JSON of the standard library",
    "deployment": "files for other programs; the packages have tests of their own that `script/test` runs",
    "end_to_end": "other programs around ephmon, which see no more of it than the tests that run again",
    "facts": "values of the standard library",
    "fuzz": "atheris instruments a checkout; `test_corpora.py` runs again",
    "faults": "faults around the daemon; `daemon/test_loop.py` runs it again",
    "kernel": "the kernel, read by the standard library",
    "kernel_truth": "the kernel, read by the standard library",
    "outputs": "text of the standard library; prometheus-client renders only the metrics, which run again",
    "model": "functions of values, no dependency at all",
    "supervision": "threads and tasks of the standard library",
    "test_benchmarks.py": "the benchmarks, which are in no package",
    "test_errors.py": "the kernel, read by the standard library",
    "test_docs.py": "pages of the checkout",
    "test_security_page.py": "a page of the checkout",
    "test_second_pass.py": "the tests' own tools",
    "test_namespaces.py": "the tests' own tools",
    "test_processes.py": "the tests' own tools",
}
"""The others, and why neither a dependency nor the wheel makes a difference."""


def runs_again(path: str) -> bool:
    """Tell of a test file, by its path below tests/, whether it runs a second time; the longest name counts.

    Raises `LookupError` if no table has it.
    """
    names = [name for name in (*AGAIN, *ONCE) if path == name or path.startswith(f"{name}/")]
    if not names:
        raise LookupError(f"tests/{path} is in no table of tests/second_pass.py: does it run on the packages too?")
    return max(names, key=len) in AGAIN
