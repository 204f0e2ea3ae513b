"""Answers for programs: JSON documents, and incident files read back."""
