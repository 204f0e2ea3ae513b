"""The commands, one module each: it reads what it needs, prints an answer and returns an exit status."""
