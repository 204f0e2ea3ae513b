"""When a pool will run out."""
