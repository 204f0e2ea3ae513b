"""Fuzzing: every parser of foreign bytes is fed with mutated real input, and its answers are held against what must be.

`targets.py` is the table. docs/proof/fuzzing.md says how to run it and what was found.
"""
