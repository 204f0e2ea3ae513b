"""From facts to conclusions: pure functions over values, with no input or output, no clock and no logging."""
