"""The only package besides `nodes/` and `tiny_scenes/host_model.py` that talks to ComfyUI.

Nothing here imports the host at module level: a module of this package can be imported anywhere, and the host is
imported by the functions that need it, when they run inside one.
"""
