"""FLUX.2 [klein]: its networks, names, sizes and variants."""
