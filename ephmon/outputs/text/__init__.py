"""Answers for people: tables, log lines and sentences for a terminal."""
