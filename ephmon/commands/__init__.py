"""The commands, each in a module: it reads what it needs, prints an answer and returns an exit status."""
