"""Finish this picture: the denoiser's answers of a run's beginning, replayed in the next run with the same beginning.

Kept around cond and uncond together (the host's CALC_COND_BATCH), so the sampler's own code, guidance and masks run
again over the same numbers: every deterministic sampler, multistep ones included, gives the same bits as from scratch.
An answer is used only where the run's key is the same (`run_key`) and the latent and sigma of that evaluation are too,
bit for bit. Whatever cannot be told apart (a ControlNet, another pack's patches) is not kept at all.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import mmap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

LIMIT_BYTES = 64 * 2**20
WRAPPER = "budgetfusion_prefix"
OWN = "budgetfusion_"
"""Names of this pack's wrappers: they look at a run and change nothing in an evaluation."""
COMPILED = "torch.compile"
"""The host's name of its compile wrapper; what it compiles with is in the model options, and so in the key."""
AROUND_EVALUATIONS = frozenset(
    {"sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function", "denoise_mask_function"}
)
"""Model options that run before or after an evaluation, and so in a replay too."""
UNTOLD_PARTS = (
    "callbacks",
    "injections",
    "hook_patches",
    "additional_models",
    "forced_hooks",
    "weight_wrapper_patches",
)
"""Parts of a MODEL that may change an evaluation in a way that nobody can read."""
ALIGNED = 64
"""Bytes: where a tensor begins in the pages of an evaluation, as torch's own allocator has it."""


class UntoldError(Exception):
    """Something that an evaluation depends on cannot be compared with another run's."""


class Evaluation:
    """One answer, copied to the CPU."""

    def __init__(self, x: Tensor, timestep: Tensor, out: Sequence[Tensor]) -> None:
        """out: denoised predictions of cond and uncond."""
        tensors = (x, timestep, *out)
        self.size = sum(tensor.nbytes for tensor in tensors)
        """Bytes."""
        self._kept = _Pinned(tensors) if x.device.type == "cuda" else _Pages(tensors)

    @property
    def x(self) -> Tensor:
        return self._kept.tensors()[0]

    @property
    def timestep(self) -> Tensor:
        return self._kept.tensors()[1]

    @property
    def out(self) -> Sequence[Tensor]:
        return self._kept.tensors()[2:]

    def answers(self, x: Tensor, timestep: Tensor) -> bool:
        """Whether it was asked of exactly this. On a GPU it waits for the sampler, which has nothing else to do."""
        return all(
            kept.shape == given.shape and kept.dtype == given.dtype and torch.equal(_copied(kept, given.device), given)
            for kept, given in zip(self._kept.tensors(), (x, timestep), strict=False)
        )


class _Pinned:
    """Copies from CUDA in pinned memory, so that the sampler goes on; later copies back are on the same stream and so
    come after them. The memory comes from torch's cache of it, which uses blocks again."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        new = (torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors)
        self._tensors = [own.copy_(one, non_blocking=True) for own, one in zip(new, tensors, strict=True)]

    def tensors(self) -> Sequence[Tensor]:
        return self._tensors


class _Pages:
    """Copies in pages of their own, which the system has back when they go, and no tensor object for as long as they
    stay. In the heap, thousands of small things that go in another order than they came leave holes that nothing else
    fits (seen with glibc: +77 MB of resident memory in 1,000 renders at 64 MB of drafts)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        starts = [0]
        for one in tensors:
            starts.append(starts[-1] + -(-one.nbytes // ALIGNED) * ALIGNED)
        self._pages = mmap.mmap(-1, starts[-1])
        self._layout = [(one.dtype, tuple(one.shape), start) for one, start in zip(tensors, starts[:-1], strict=True)]
        for own, one in zip(self.tensors(), tensors, strict=True):
            own.copy_(one)

    def tensors(self) -> Sequence[Tensor]:
        """Views of the pages; each holds them."""
        return [
            torch.frombuffer(self._pages, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
            for dtype, shape, start in self._layout
        ]


@dataclass
class PrefixCache:
    """The beginnings of the last runs: least recently used ones go first. Holds tensors on the CPU and nothing else."""

    limit: int = LIMIT_BYTES
    """Bytes."""
    _drafts: OrderedDict[str, list[Evaluation]] = field(default_factory=OrderedDict)
    _size: int = 0

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def clear(self) -> None:
        self._drafts.clear()
        self._size = 0

    def draft(self, key: str) -> tuple[Evaluation, ...]:
        """What is kept under `key`, first evaluation first; it becomes the most recently used."""
        if key not in self._drafts:
            return ()
        self._drafts.move_to_end(key)
        return tuple(self._drafts[key])

    def cut(self, key: str, length: int) -> None:
        """Forgets a draft's evaluations from place `length` on."""
        dropped = self._drafts.get(key, [])[length:]
        self._size -= sum(evaluation.size for evaluation in dropped)
        if dropped:
            del self._drafts[key][length:]

    def append(self, key: str, evaluation: Evaluation) -> bool:
        """Whether there was room: other drafts give way, the own beginning does not."""
        own = sum(kept.size for kept in self.draft(key))
        if own + evaluation.size > self.limit:
            return False
        self._drafts.setdefault(key, []).append(evaluation)
        self._size += evaluation.size
        while self._size > self.limit:
            self._size -= sum(old.size for old in self._drafts.popitem(last=False)[1])
        return True


DRAFTS = PrefixCache()
"""Of this process."""


class Replay:
    """CALC_COND_BATCH wrapper of one run: replays what its draft knows and keeps its first `keep` evaluations.

    Calls that another function makes on its own (perturbed guidance, for instance) have other conditionings or options
    than the sampler's; they are passed on and count for nothing.
    """

    def __init__(self, cache: PrefixCache, key: str, keep: int) -> None:
        self.cache, self.key, self.keep = cache, key, keep
        self.replayed = 0
        """Evaluations taken from the draft."""
        self.place = 0
        self.following = True
        self.own: tuple[int, ...] = ()

    def __call__(self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
        caller = (*(id(cond) for cond in conds), id(options))
        self.own = self.own or caller
        if caller != self.own:
            return executor(model, conds, x, timestep, options)
        place, self.place = self.place, self.place + 1
        known = self._replay(place, x, timestep)
        if known is not None:
            self.replayed += 1
            return known
        out = executor(model, conds, x, timestep, options)
        self._keep(place, x, timestep, out)
        return out

    def _replay(self, place: int, x: Tensor, timestep: Tensor) -> list[Tensor] | None:
        try:
            found = self._found(place, x, timestep)
            return None if found is None else [_copied(out, x.device) for out in found.out]
        except Exception:
            self._give_up()
            return None

    def _keep(self, place: int, x: Tensor, timestep: Tensor, out: list[Tensor]) -> None:
        try:
            if self.following and place < self.keep:
                self.following = self.cache.append(self.key, Evaluation(x, timestep, out))
        except Exception:
            self._give_up()

    def _give_up(self) -> None:
        """The render goes on without a draft; where memory is short, the drafts give theirs back."""
        log.warning("BudgetFusion renders without a draft", exc_info=True)
        self.following = False
        self.cache.clear()

    def _found(self, place: int, x: Tensor, timestep: Tensor) -> Evaluation | None:
        draft = self.cache.draft(self.key)
        if not self.following or place >= len(draft):
            return None
        if draft[place].answers(x, timestep):
            return draft[place]
        self.cache.cut(self.key, place)
        return None


def with_replay(model: Any, key: str | None, keep: int, cache: PrefixCache = DRAFTS) -> tuple[Any, Replay | None]:
    """(a clone of the MODEL that replays and keeps, its Replay); the MODEL itself and None where there is no key."""
    if key is None or keep < 1:
        return model, None
    replay, clone = Replay(cache, key, keep), model.clone()
    kind = importlib.import_module("comfy.patcher_extension").WrappersMP.CALC_COND_BATCH
    clone.add_wrapper_with_key(kind, WRAPPER, replay)
    return clone, replay


def run_key(model: Any, *inputs: Any) -> str | None:
    """Digest of everything that a run's evaluations depend on, besides the latent and sigma of each; None where
    something in it cannot be read. inputs: CONDITIONINGs, LATENT, seed, cfg, names: tensors and plain values."""
    digest = hashlib.sha256()
    try:
        _add(digest, _model_parts(model))
        _add(digest, inputs)
    except UntoldError:
        return None
    return digest.hexdigest()


def _model_parts(model: Any) -> tuple[Any, ...]:
    """The host gives a MODEL a new `patches_uuid` when it is loaded and with every LoRA or merge."""
    for name in UNTOLD_PARTS:
        if _any_inside(getattr(model, name, None)):
            raise UntoldError(name)
    for by_key in (getattr(model, "wrappers", None) or {}).values():
        if any(listed and key != COMPILED and not str(key).startswith(OWN) for key, listed in by_key.items()):
            raise UntoldError("wrappers")
    inner = model.model
    if "forward" in vars(getattr(inner, "diffusion_model", inner)):
        raise UntoldError("forward")  # replaced in place by another pack
    options = {key: value for key, value in model.model_options.items() if key not in AROUND_EVALUATIONS}
    dtypes = (model.model_dtype(), getattr(inner, "manual_cast_dtype", None), model.force_cast_weights)
    arithmetic = (torch.is_autocast_enabled(), torch.get_float32_matmul_precision(), torch.get_default_dtype())
    return (
        str(model.patches_uuid),
        type(inner).__qualname__,
        model.load_device,
        dtypes,
        arithmetic,
        {
            "options": options,
            "objects": model.object_patches,
        },
    )


def _any_inside(part: Any) -> bool:
    """Whether nested dicts and lists hold anything."""
    if isinstance(part, Mapping):
        return any(_any_inside(value) for value in part.values())
    return bool(part)


def _add(digest: Any, value: Any) -> None:
    """Feeds a value with its type; UntoldError for one that is neither plain nor a tensor nor a module of buffers."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device)):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
    elif type(value) in (Tensor, nn.Parameter):
        flat = value.detach().cpu().contiguous()
        digest.update(f"tensor:{flat.dtype}:{tuple(flat.shape)};".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"map:{len(value)};".encode())
        for key in sorted(value, key=str):
            _add(digest, key)
            _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list:{len(value)};".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, nn.Module) and not list(value.children()):
        _add(digest, [c.__qualname__ for c in type(value).__mro__])
        _add(digest, {key: item for key, item in vars(value).items() if not key.startswith("_")})
        _add(digest, dict(value.state_dict(keep_vars=True)))
        _add(digest, dict(value.named_buffers()))
    else:
        raise UntoldError(type(value).__name__)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that may be written to."""
    return tensor.to(device, non_blocking=True, copy=True)
