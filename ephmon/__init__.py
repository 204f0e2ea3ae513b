"""How many more connections this host can open before connect() fails, for every destination.

The kernel is read at one edge (`ephmon.kernel`), the answer leaves by another (`ephmon.outputs`), and between them
(`ephmon.model`) are values and pure functions. `ephmon.daemon.loop` and `ephmon.cli` wire the three together.
"""

__version__ = "0.1.0"
