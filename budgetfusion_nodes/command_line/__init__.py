"""The pack's command line: `python -m budgetfusion_nodes`. It loads no model itself: a ComfyUI does."""
