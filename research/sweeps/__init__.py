"""Rendering and measuring prompts over a grid of step counts, for the shipped planners and the benchmark."""
