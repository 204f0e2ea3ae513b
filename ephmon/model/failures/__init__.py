"""connect() calls that failed because no port was left."""
