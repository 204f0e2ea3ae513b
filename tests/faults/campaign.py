"""All faults, by what they are faults of."""

from __future__ import annotations

from tests.faults import (
    test_clients,
    test_configuration,
    test_kernel,
    test_limits,
    test_neighbours,
    test_output,
    test_receivers,
    test_signals,
    test_tracing,
)

THEMES = {
    "What ephmon reads": test_kernel.CASES,
    "Failed calls": test_tracing.CASES,
    "Threads, descriptors and memory": test_limits.CASES,
    "Configuration and reloads": test_configuration.CASES,
    "The log and incidents": test_output.CASES,
    "Receivers of alerts": test_receivers.CASES,
    "HTTP": test_clients.CASES,
    "Signals and time": test_signals.CASES,
    "Others on the host": test_neighbours.CASES,
}
CASES = [case for cases in THEMES.values() for case in cases]
