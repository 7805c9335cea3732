"""Who asks, under which host, from which page, through which proxies: what is let in, and what its URLs start with."""
