"""HTTP itself, whatever is asked: connections, access, bodies, errors, what is counted and logged."""
