"""What files hold: formats, and which network is in which file."""
