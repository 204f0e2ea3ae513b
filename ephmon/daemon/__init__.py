"""The daemon: polls, waits, reloads, and wires the kernel, the model and the outputs."""
