"""The status page in HTML."""
