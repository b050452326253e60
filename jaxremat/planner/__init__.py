"""From a program and a number of bytes to a decision: one planner per form of emission, under one protocol."""
