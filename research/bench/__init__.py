"""The benchmark: planner, rivals and peers on held-out prompts, and the report of it."""
