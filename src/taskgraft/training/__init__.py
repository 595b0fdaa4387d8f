"""Training: one step, many steps, and a run folder that survives a stop."""
