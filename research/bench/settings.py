"""What the benchmark renders: models, samplers, step counts and peers. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

PROMPT_SEED = 2026
PROMPTS, SEEDS = 300, 2
PEER_PROMPTS = 96
"""The peers are many and take fewer prompts; the report says how many."""
TARGET = 50
STOCK_COUNTS = (2, 4, 6, 8, 10, 13, 17, 20, 30, TARGET)
TAILS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 15)
"""Steps of a nested schedule after its prefix; the whole TARGET comes on top."""
LARGEST_COUNT = 64
"""Sets of other counts up to this one are found too where somebody rendered them."""
PEER_COUNTS = (10, 20)
TIMED_COUNTS = (6, 13, 25, TARGET)
TIMED_PROMPTS = 3
SCHEDULERS = ("karras", "normal", "sgm_uniform", "beta", "kl_optimal", "exponential", "simple", "linear_quadratic")


@dataclass(frozen=True)
class Table:
    """A schedule that a core node of the host makes from a table of noise levels."""

    family: str
    module: str
    node: str
    arguments: tuple[str | float, ...]
    """Of the node before `steps` and `denoise`."""


TABLES = {
    "eps": (
        Table("AYS (SD1)", "nodes_align_your_steps", "AlignYourStepsScheduler", ("SD1",)),
        Table("AYS (SDXL)", "nodes_align_your_steps", "AlignYourStepsScheduler", ("SDXL",)),
        Table("GITS 1.2", "nodes_gits", "GITSScheduler", (1.2,)),
    ),
    "flow": (
        Table("OptimalSteps (FLUX)", "nodes_optimalsteps", "OptimalStepsScheduler", ("FLUX",)),
        Table("OptimalSteps (Chroma)", "nodes_optimalsteps", "OptimalStepsScheduler", ("Chroma",)),
    ),
}
"""Noise of the model -> the tables whose range of noise levels is its own."""


@dataclass(frozen=True)
class Cached:
    """A core cache node over a schedule, or dpm_adaptive."""

    family: str
    node: str | None
    """EasyCache, LazyCache; None for dpm_adaptive."""
    threshold: float
    """reuse_threshold, or rtol."""
    steps: int = 0
    nested: bool = False

    @property
    def label(self) -> str:
        return f"rtol {self.threshold:g}" if self.node is None else f"{self.threshold:g} at {self.steps}"


CACHED = (
    *(
        Cached(node, node, threshold, steps)
        for node in ("EasyCache", "LazyCache")
        for threshold, steps in ((0.1, 20), (0.2, 20), (0.2, TARGET))
    ),
    *(
        Cached("nested with EasyCache", "EasyCache", threshold, steps, nested=True)
        for threshold, steps in ((0.1, 10), (0.2, 15))
    ),
    *(Cached("dpm_adaptive", None, rtol) for rtol in (0.05, 0.2)),
)


@dataclass(frozen=True)
class BenchSetting:
    """One model with one sampler and scheduler."""

    name: str
    """Of its folder."""
    title: str
    checkpoint: str
    """File name in weights/checkpoints."""
    noise: str
    """A key of TABLES."""
    sampler_name: str
    scheduler: str
    nested: str
    """Prefix and commit point, where no planner and no option says otherwise."""
    cfg: float = 3.0

    @property
    def words(self) -> str:
        return f"{self.title}, {self.sampler_name} / {self.scheduler}, cfg {self.cfg:g}"


SETTINGS = {
    setting.name: setting
    for setting in (
        BenchSetting("eps_karras", "Tiny Scenes", "tiny_scenes.safetensors", "eps", "dpmpp_2m", "karras", "5@1.0"),
        BenchSetting("eps_normal", "Tiny Scenes", "tiny_scenes.safetensors", "eps", "euler", "normal", "8@1.0"),
        BenchSetting("flow", "Tiny Scenes Flow", "tiny_scenes_flow.safetensors", "flow", "euler", "simple", "6@0.207"),
    )
}
