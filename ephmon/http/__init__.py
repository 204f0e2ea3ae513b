"""The HTTP server: sends what was rendered at the last poll, and guards its connections."""
