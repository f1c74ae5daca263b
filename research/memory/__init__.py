"""What memory saves, and whether it keeps the promise: `python -m research study memory`."""
