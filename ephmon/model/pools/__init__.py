"""Pools of ports: which there are, how full each is, and which ports no connect() can take."""
