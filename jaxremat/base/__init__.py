"""What every room may use: errors, budgets as people write them, policies, the one door to JAX's inside."""
