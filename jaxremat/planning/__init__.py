"""What users call: plans, their files, their checks, the decorator and the curve of many budgets."""
