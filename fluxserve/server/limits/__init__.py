"""What one client may take from the others: requests a minute, bytes under way, files that are open."""
