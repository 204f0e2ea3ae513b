"""`python -m ephmon` is the command `ephmon`."""

from ephmon.cli import entry_point

if __name__ == "__main__":
    entry_point()
