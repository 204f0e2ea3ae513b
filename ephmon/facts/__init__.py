"""Facts: what the kernel said at one moment, as values; nothing is concluded from them here."""
