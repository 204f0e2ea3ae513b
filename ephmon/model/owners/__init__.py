"""Who holds the ports."""
