"""The HTTP server: it sends what was published at the last poll, and limits what connections may cost."""
