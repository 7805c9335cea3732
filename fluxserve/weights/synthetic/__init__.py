"""Models of seeded random weights, written to disk."""
