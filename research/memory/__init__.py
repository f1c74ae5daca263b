"""What memory saves, and whether it keeps the guarantee: `python -m research study memory`."""
