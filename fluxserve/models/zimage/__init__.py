"""Z-Image: its transformer, names, sizes and variants."""
