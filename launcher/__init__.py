"""What `run.py` is made of: set-up, a genuine ComfyUI as a child process, and the commands. Standard library only."""
