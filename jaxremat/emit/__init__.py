"""A scheduled program as a JAX function: fenced schedules, names for policies, pieces in checkpoints."""
