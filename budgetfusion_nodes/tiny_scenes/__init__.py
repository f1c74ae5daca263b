"""Tiny Scenes: the small text-to-image model that this project trains and ships, and everything it is made from."""
