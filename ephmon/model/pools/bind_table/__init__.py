"""Pools as the kernel's bind table gives them: counted by the kernel's own rules, so nothing is in doubt."""
