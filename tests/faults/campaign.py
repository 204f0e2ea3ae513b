"""All faults, by what they are faults of."""

from __future__ import annotations

from tests.faults import clients, configuration, kernel, limits, neighbours, output, receivers, signals, tracing

THEMES = {
    "What ephmon reads": kernel.CASES,
    "Failed calls": tracing.CASES,
    "Threads, descriptors and memory": limits.CASES,
    "Configuration and reloads": configuration.CASES,
    "The log and incidents": output.CASES,
    "Receivers of alerts": receivers.CASES,
    "HTTP": clients.CASES,
    "Signals and time": signals.CASES,
    "Others on the host": neighbours.CASES,
}
CASES = [case for cases in THEMES.values() for case in cases]
