"""What users call: plans, files, checks, the decorator, curves of many budgets; and what is compiled for them."""
