"""What there is to say about a plan, as frozen data computed once: values, rows, live bytes over time, costs."""
