"""Writes the example graphs."""
