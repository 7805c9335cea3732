"""FLUX.3 image klein: its transformer, names, sizes and variants."""
