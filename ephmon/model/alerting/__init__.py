"""Alerts: thresholds, what one poll says of each alert, and the state machine that remembers."""
