"""Threads, tasks and extras: started in one way, watched, and started again when they end by an error."""
