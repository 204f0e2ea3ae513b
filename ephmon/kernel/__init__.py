"""The edge where the kernel is read: netlink, /proc, tracing, the probe. It gathers facts and judges nothing."""
