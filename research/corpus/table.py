"""docs/models.md: what the official template graphs run, and what the pack does there."""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from research.in_process_host import PACK_ROOT, HostSession

from .decision import CALIBRATE, DISTILLED, PLAN, REFUSE, Decision, decide
from .families import family_of, format_of
from .package import PACKAGE, installed_version, sampling_prompts
from .uses import Use, uses_of

PAGE = PACK_ROOT / "docs" / "models.md"
MOST = 4
"""Different settings that are spelt out in a cell."""

HEAD = """# What the pack does with which model

Counted in the {graphs} graphs of `{package}` {version} in which a sampler node is active: {nodes} nodes,
subgraphs included, muted and bypassed ones left out. The last column is the pack's own decision after a fresh install,
node by node. Families that are not listed (SD 1.5, AuraFlow) have no graph in that package. Written by
`python -m research models`; a test compares this page with what that command writes.

- **calibrate first**: sampler and schedule can be planned, and no planner is shipped for this model. Until there is
  one, the node says so and renders `max_steps`, the count that the graph had.
- **distilled: keep n**: a few-step model or LoRA, told by its file's name, or by cfg 1 with at most 12 steps. A plan
  has nothing to save there.
- **refuse**: the sampler adds fresh noise at each step, or the sigmas come from a node that is no scheduler of
  ComfyUI's list (set by hand, or by a rule of the model's own), or sound or a solid is made, so that calibration has no
  picture to compare.
- *in parts*: two nodes render one picture, split at a step (the two experts of Wan 2.2, SDXL's base and refiner).

{summary}

| family | makes | graphs | sampler and schedule | cfg | steps | files | what the pack does |
|---|---|---|---|---|---|---|---|
"""


def render(uses: Sequence[Use], decisions: Sequence[Decision], version: str) -> str:
    """The page."""
    rows: dict[str, list[tuple[Use, Decision]]] = defaultdict(list)
    for use, decision in zip(uses, decisions, strict=True):
        rows[family_of(use.model_file).name].append((use, decision))
    by_size = sorted(rows.items(), key=lambda item: (-len({use.graph for use, _ in item[1]}), item[0]))
    graphs = len({use.graph for use in uses})
    head = HEAD.format(graphs=graphs, nodes=len(uses), package=PACKAGE, version=version, summary=_summary(decisions))
    return head + "\n".join(_row(name, members) for name, members in by_size) + "\n"


def _summary(decisions: Sequence[Decision]) -> str:
    counts = Counter(decision.kind for decision in decisions)
    parts = ", ".join(f"{kind}: {counts[kind]}" for kind in (PLAN, CALIBRATE, DISTILLED, REFUSE))
    return f"Sampler nodes by decision: {parts}."


def _row(name: str, members: Sequence[tuple[Use, Decision]]) -> str:
    uses = [use for use, _ in members]
    cells = (
        name,
        family_of(uses[0].model_file).makes,
        str(len({use.graph for use in uses})),
        _listed(_sampling(use) for use in uses),
        _listed("computed" if use.cfg is None else f"{use.cfg:g}" for use in uses),
        _listed("computed" if use.steps is None else str(use.steps) for use in uses),
        _listed(format_of(use.model_file) for use in uses),
        _happens(members),
    )
    return f"| {' | '.join(cells)} |"


def _sampling(use: Use) -> str:
    part = " in parts" if "part" in use.part else ", denoise < 1" if use.part else ""
    return f"{use.sampler_name} / {use.schedule}{part}"


def _listed(values: Iterable[str]) -> str:
    """`a (3), b`: the most frequent first, those beyond MOST counted together."""
    ordered = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{value} ({count})" if count > 1 else value for value, count in ordered[:MOST]]
    rest = sum(count for _, count in ordered[MOST:])
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


def _happens(members: Sequence[tuple[Use, Decision]]) -> str:
    """Every decision with its count, the same kind together: `distilled: keep 4 (3), 8`."""
    kinds: Mapping[str, list[str]] = defaultdict(list)
    for _, decision in members:
        kinds[decision.kind].append(decision.why)
    said: list[str] = []
    for kind in (PLAN, CALIBRATE, DISTILLED, REFUSE):
        reasons = [why.removeprefix("keep ") if kind == DISTILLED else why for why in kinds.get(kind, [])]
        if any(reasons):
            said.append(f"{kind}: {'keep ' if kind == DISTILLED else ''}{_listed(reasons)}")
        elif reasons:
            said.append(f"{kind} ({len(reasons)})")
    return "; ".join(said)


def page_for(session: HostSession) -> str:
    """What docs/models.md should say, by the host that runs."""
    info = session.object_info()
    uses = [use for name, _, prompt in sampling_prompts(info) for use in uses_of(name, prompt)]
    schedulers = tuple(importlib.import_module("comfy.samplers").KSampler.SCHEDULERS)
    return render(uses, [decide(use, schedulers) for use in uses], installed_version())
