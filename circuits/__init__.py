"""Top floor: what features do to each other, and the graphs of it."""
