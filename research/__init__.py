"""What the project needs and an artist does not: benchmark, trainings, templates, demo. Imports the pack; the pack
never imports it."""
