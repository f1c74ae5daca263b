"""From a model in a graph to a planner for it: prompts, renders, the store they are kept in, the fit and its report.

Nothing here imports the host except `host_renderer`, which does so on use.
"""
