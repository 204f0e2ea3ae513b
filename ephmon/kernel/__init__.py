"""The edge where the kernel is read: sysctls, inet_diag over netlink, /proc. It gathers facts and judges nothing."""
