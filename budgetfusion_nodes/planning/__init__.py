"""From a node's inputs to a plan, its receipt, and measurements against it."""
