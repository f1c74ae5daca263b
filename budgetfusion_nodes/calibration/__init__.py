"""From a few renders of a model to what a planner file holds."""
