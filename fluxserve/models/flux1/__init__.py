"""FLUX.1: its networks, text encoders, names, sizes, variants."""
