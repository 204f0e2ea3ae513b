"""What to change when a pool fills up."""
