"""Several hosts: what needs no Ray here, and real Ray Serve behind the mark `ray`."""
