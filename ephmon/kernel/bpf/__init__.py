"""The kernel's bind table, walked by a small BPF program: exact numbers without copying a socket to user space."""
