"""JSON documents for programs, and reading incident files."""
