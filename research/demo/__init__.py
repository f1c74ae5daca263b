"""The demo's own side: queues graphs on a running ComfyUI, follows them, and writes the contact sheet and the report.

Needs aiohttp, numpy, Pillow and tqdm, and neither torch nor the host: `python run.py demo` starts both sides.
"""
