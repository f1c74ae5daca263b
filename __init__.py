"""BudgetFusion for ComfyUI: plans the number of sampling steps from the prompt.

Imports neither the host nor torch: everything happens when ComfyUI calls the entry point.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./budgetfusion_nodes/web"


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls once at start. It shows an error as one line without a traceback, so log it here first."""
    try:
        from .budgetfusion_nodes.nodes.extension import BudgetFusionExtension, prepare_host

        prepare_host()
        return BudgetFusionExtension()
    except Exception:
        import logging

        logging.getLogger(__name__).exception("BudgetFusion could not start; its nodes are missing")
        raise
