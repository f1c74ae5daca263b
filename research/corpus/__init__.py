"""The official template graphs, which nobody here wrote: what artists run, and what our nodes do in them."""
