"""The HTTP server: it sends what was rendered at the last poll, and limits what connections may cost."""
