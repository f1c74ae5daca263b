"""Scenes, renderer, training and evaluation of the models that the repository ships."""
