"""Which tests run a second time, on the built wheel and with the oldest dependencies: those that can tell a difference.

`pytest --on-packages` leaves out the others. Every test file has to be in one of the tables below, or no test runs at
all, so that a new one is not left out by accident.
"""

from __future__ import annotations

AGAIN = {
    "config": "PyYAML parses the configuration",
    "delivery/test_real_alertmanager.py": "the installed modules send alerts",
    "fuzz/test_corpora.py": "PyYAML and tornado answer the corpus",
    "http": "tornado has the streams and parses heads",
    "log": "tornado logs too",
    "kernel/proc/test_processes.py": "psutil lists processes",
    "outputs/metrics": "prometheus-client renders the metrics",
    "test_architecture.py": "the wheel has all modules, and imports what it may",
}
"""Files and folders below tests/, and what of a dependency or of the wheel they try."""

SOME_AGAIN = {
    "daemon/test_owner_watch.py": (
        "test_who_holds_the_ports_of_a_pool_is_reported_everywhere_while_it_alerts",
        "test_without_any_capability_the_daemon_names_owners_and_says_once_what_it_may_not",
        "test_it_takes_both_capabilities_to_name_processes",
        "test_the_command_names_owners_without_any_capability",
    ),
    "daemon/test_loop.py": (
        "test_it_starts_on_its_defaults_and_serves",
        "test_a_reload_takes_the_new_file_over",
        "test_a_reload_that_cannot_be_keeps_all_of_the_old_configuration",
        "test_idle_it_takes_at_most_50_mib_and_4_threads_and_no_more_descriptors",
        "test_it_imports_nothing_that_it_does_not_run_on",
        "test_https_is_served_and_plain_http_is_not",
        "test_another_certificate_is_shown_after_a_reload",
    ),
    "test_cli.py": (
        "test_the_json_has_all_that_is_promised",
        "test_the_table_has_a_line_for_each_pool_the_fullest_first",
        "test_no_locale_stops_a_command",
        "test_the_version_and_the_help_are_printed",
        "test_a_broken_configuration_is_reported_with_all_its_mistakes",
        "test_check_config_prints_what_is_in_force",
        "test_without_a_file_the_defaults_hold",
        "test_a_command_does_without_the_http_side",
    ),
}
"""Files of which these tests run again: the installed program does each thing that a dependency has a part in.

The others are about signals, pipes, threads and the kernel, and each starts a program, which is what they cost.
"""

ONCE = {
    "config/test_endpoint.py": "addresses and URLs of the standard library",
    "daemon": "threads, signals and files of the standard library; some of `test_loop.py` runs the daemon again",
    "commands": "the command line, which some of `test_cli.py` runs again as it is installed",
    "delivery": "sockets, TLS and JSON of the standard library",
    "deployment": "files for other programs; the packages have tests of their own that `script/test` runs",
    "end_to_end": "other programs around ephmon, which see no more of it than the tests that run again",
    "facts": "values of the standard library",
    "fuzz": "atheris instruments a checkout; `test_corpora.py` runs again",
    "faults": "faults around the daemon, which some of `daemon/test_loop.py` runs again",
    "log/test_handler.py": "threads and pipes of the standard library",
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


def may_run_again(path: str) -> bool:
    """Tell of a test file, by its path below tests/, whether any of its tests runs a second time; raise as below."""
    return path in SOME_AGAIN or runs_again(path, "")


def runs_again(path: str, test: str) -> bool:
    """Tell of a test, by its name and the path of its file below tests/, whether it runs a second time.

    The longest name in the tables counts. Raises `LookupError` if no table has the file.
    """
    if path in SOME_AGAIN:
        return test in SOME_AGAIN[path]
    names = [name for name in (*AGAIN, *ONCE) if path == name or path.startswith(f"{name}/")]
    if not names:
        raise LookupError(f"tests/{path} is in no table of tests/second_pass.py: does it run on the packages too?")
    return max(names, key=len) in AGAIN
