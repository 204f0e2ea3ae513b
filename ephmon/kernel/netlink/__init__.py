"""The kernel's netlink interfaces: sock_diag and its inet_diag dumps, and the routing table."""
