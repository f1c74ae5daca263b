"""Renders and measures calibration pictures in the host, with the model exactly as the graph hands it over.

Prompts are encoded by the host's CLIPTextEncode, rendered by its KSampler and decoded by its VAE Decode, so whatever
works there works here: split loaders, quantised weights, LoRA stacks, sampling patches, compiled models. One picture
at a time: it is measured and forgotten, and nothing of a sweep accumulates.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..core.curves import METRICS
from ..core.errors import InputError, UnsupportedError
from ..core.messages import message
from ..core.schedule import NestedSchedule
from ..core.stages import told
from ..host.batch import empty_latent
from ..host.conditioning import TEXT, extract, extras_digest
from ..host.digest import digest_of, network_name
from ..host.memory import is_cancel, is_out_of_memory, make_room, render_device, stop_if_cancelled, unload_everything
from ..host.prefix_cache import PrefixCache
from ..host.sampling import check_has_count, check_latent, decode, render
from ..host.schedule import shared_sigmas
from ..host.weights import UnreadableWeights
from ..metrics.clip_score import NAME as CLIP_SCORE
from ..metrics.measure import Backends, Series
from ..metrics.measure import Measurement as Measured
from .prompt_fit import PromptFit
from .records import Encoded, Measurement
from .trajectory import RenderError

FRAMES = 8
"""Frames of a video that are measured at most, evenly spaced; its distance is their mean."""
EMPTY = 1e-4
"""A picture whose brightest and darkest values lie closer is no picture: black, or one colour."""
CACHED_BYTES = 256 << 20
"""Of encoded prompts that are kept between choosing and rendering them."""
SHARED_BYTES = 256 << 20
"""Of one trajectory's evaluations that its counts share."""
BYTES_PER_PIXEL = 4 * 4 * 100
"""Working memory of measuring a picture beside its reference, about; the host frees that much before."""


@dataclass(frozen=True)
class Graph:
    """What the graph connects to the node."""

    model: Any
    clip: Any
    vae: Any
    negative: Any
    sampler_name: str
    scheduler: str
    cfg: float
    latent: Mapping[str, Any]
    """One LATENT to start from."""
    extras: Mapping[str, Any]
    """Laid on every prompt: guidance, sizes, reference latents of the graph's own positive."""

    @classmethod
    def connected(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        negative: Any,
        sampler_name: str,
        scheduler: str,
        cfg: float,
        *,
        positive: Any = None,
        latent_image: Any = None,
        width: int = 512,
        height: int = 512,
    ) -> Graph:
        """InputError or UnsupportedError where nothing can be calibrated with this."""
        check_has_count(sampler_name)
        latent = {"samples": empty_latent(model, 1, width, height)} if latent_image is None else first_of(latent_image)
        own = encode_text(clip, "")
        extras = extras_of(positive, own) if positive is not None else {}
        return cls(model, clip, vae, negative, sampler_name, scheduler, cfg, latent, extras)

    def conditioning(self, text: str) -> Any:
        """The CONDITIONING that a prompt is rendered with."""
        return [[tokens, {**extra, **self.extras}] for tokens, extra in encode_text(self.clip, text)]

    def facts(self) -> dict[str, str]:
        """Digests of what moves the picture beside the setting. UnsupportedError where that cannot be told apart."""
        try:
            return self._facts()
        except UnreadableWeights as error:
            raise UnsupportedError(message("model_unknown", name="ControlNet", kind=str(error))) from error

    def _facts(self) -> dict[str, str]:
        vae = getattr(self.vae, "first_stage_model", self.vae)
        found = {"negative": digest_of(self.negative), "vae": network_name(vae)}
        extras = extras_digest([["", self.extras]])
        if extras:
            found["extras"] = extras
        samples = self.latent["samples"]
        if torch.count_nonzero(samples):
            found["latent"] = digest_of(samples)
        if self.latent.get("noise_mask") is not None:
            found["noise_mask"] = digest_of(self.latent["noise_mask"])
        return found


def first_of(latent_image: Any) -> dict[str, Any]:
    """The LATENT with its first picture alone. UnsupportedError for latents of several parts (picture and sound)."""
    samples = check_latent(latent_image)
    if not isinstance(samples, Tensor) or getattr(samples, "is_nested", False):
        raise UnsupportedError(message("calibrate_nested_latent"))
    first = {key: value for key, value in latent_image.items() if key != "batch_index"}
    mask = first.get("noise_mask")
    if isinstance(mask, Tensor) and mask.ndim > 2:
        first["noise_mask"] = mask[:1]
    return {**first, "samples": samples[:1]}


def encode_text(clip: Any, text: str) -> Any:
    """A CONDITIONING by the host's CLIPTextEncode."""
    return importlib.import_module("nodes").CLIPTextEncode().encode(clip, text)[0]


def extras_of(positive: Any, own: Any) -> dict[str, Any]:
    """What a CONDITIONING of the graph carries beside its own text and what the text encoder gives anyway (`own`)."""
    extract(positive)  # InputError where it is none
    return {key: value for key, value in positive[0][1].items() if key not in TEXT and key not in own[0][1]}


def choose_backends(model: Any, clip_vision: Any) -> tuple[Backends, tuple[str, ...]]:
    """(backends, metrics). The shipped encoder knows Tiny Scenes alone; elsewhere I-CLIP needs a CLIP_VISION."""
    config = type(getattr(getattr(model, "model", None), "model_config", None)).__name__
    if clip_vision is not None:
        return Backends.from_values("auto", "clip_vision", clip_vision), METRICS
    if "TinyScenes" in config:
        return Backends.from_values("tiny_scenes", "shipped"), METRICS
    return Backends.from_values("auto", "none"), tuple(m for m in METRICS if m != "i_clip")


@dataclass(frozen=True)
class HostReference:
    """A target picture; see `trajectory.Reference`."""

    found: Measurement
    series: tuple[Series, ...]
    """One for each frame that is measured."""
    samples: Tensor
    shared: PrefixCache = field(default_factory=lambda: PrefixCache(SHARED_BYTES))
    """The evaluations that all counts of this trajectory begin with."""

    def to_bytes(self) -> bytes:
        return save({"samples": self.samples.cpu().contiguous()})


Report = Callable[[int, Any], Any]
"""(steps of this render, model) -> the model to be rendered with, which reports each step."""


class HostRenderer:
    """See `trajectory.Renderer`."""

    def __init__(
        self,
        graph: Graph,
        backends: Backends,
        metrics: Sequence[str],
        report: Report,
        schedule: NestedSchedule | None = None,
        texts: Sequence[str] = (),
        finished: Mapping[int, Tensor] | None = None,
    ) -> None:
        """texts: prompts of the job, of which some are the others that a picture's own is compared with; finished:
        steps -> samples that were rendered before, for a job of one prompt and seed."""
        self.graph, self.backends, self.metrics, self.schedule = graph, backends, tuple(metrics), schedule
        self.report = report
        self.texts = tuple(texts)
        self.finished = finished or {}
        self._encoded: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0
        self._fit = PromptFit(backends.i_clip if "i_clip" in metrics else None, self._pooled, texts)

    def along(self, schedule: NestedSchedule) -> HostRenderer:
        """This one along a nested schedule; to be used in its place, for it goes on with the prompts that this one has
        encoded."""
        other = copy.copy(self)
        other.schedule = schedule
        return other

    def encode(self, text: str) -> Encoded:
        stop_if_cancelled()
        tokens, pooled, _ = extract(self.conditioning(text))
        return Encoded.of(tokens, pooled)

    def reference(self, text: str, seed: int, steps: int, kept: bytes | None, careful: bool) -> HostReference:
        shared = PrefixCache(SHARED_BYTES)
        with failures(careful):
            started = time.perf_counter()
            if kept is not None:
                samples, evaluations = load(kept)["samples"], 0
            else:
                samples, evaluations = self._sample(shared, text, seed, steps)
            pictures = self.decode(samples)
            rendered = time.perf_counter()
            series = tuple(Series(one, self.backends, self.metrics, render_device()) for one in pictures.split(1))
            frames = [s.add(one) for s, one in zip(series, pictures.split(1), strict=True)]
            decibel = self._mean([frame.decibel for frame in frames])
            distances = {**dict.fromkeys(self.metrics, 0.0), **self.score(text, frames)}
            measured = time.perf_counter()
        found = Measurement(steps, distances, decibel, evaluations, rendered - started, measured - rendered)
        return HostReference(found, series, samples, shared)

    def measure(self, reference: HostReference, text: str, seed: int, steps: int, careful: bool) -> Measurement:
        with failures(careful):
            started = time.perf_counter()
            samples, evaluations = self._sample(reference.shared, text, seed, steps)
            pictures = self.decode(samples)
            rendered = time.perf_counter()
            frames = [s.add(one) for s, one in zip(reference.series, pictures.split(1), strict=True)]
            distances = {m: self._mean([frame.distances[m] for frame in frames]) for m in self.metrics}
            distances |= self.score(text, frames)
            decibel = self._mean([frame.decibel for frame in frames])
            measured = time.perf_counter()
        return Measurement(steps, distances, decibel, evaluations, rendered - started, measured - rendered)

    @staticmethod
    def _mean(values: Sequence[Tensor]) -> float:
        return float(torch.cat([value.double() for value in values]).mean())

    def score(self, text: str, frames: Sequence[Measured]) -> dict[str, float]:
        """{"clip_score": mean over the frames}; empty where picture and prompt cannot be compared."""
        scores = [self._fit.score(text, frame.embeddings) for frame in frames]
        found = [score for score in scores if score is not None]
        return {CLIP_SCORE: self._mean(found)} if found else {}

    def _pooled(self, text: str) -> Tensor | None:
        return extract(self.conditioning(text))[1]

    def conditioning(self, text: str) -> Any:
        known = self._encoded.pop(text, None)
        if known is None:
            known = self.graph.conditioning(text)
            self._bytes += _size(known)
        self._encoded[text] = known
        while self._bytes > CACHED_BYTES and len(self._encoded) > 1:
            self._bytes -= _size(self._encoded.popitem(last=False)[1])
        return known

    def _sample(self, shared: PrefixCache, text: str, seed: int, steps: int) -> tuple[Tensor, int]:
        """(the latent [1, C, ...] after `steps` steps, evaluations that were not in `shared`)."""
        if steps in self.finished:
            return self.finished[steps], 0
        return self.sample(shared, text, seed, steps, *self.sigmas(steps))

    def sample(
        self, shared: PrefixCache, text: str, seed: int, steps: int, sigmas: Tensor | None, prefix_steps: int
    ) -> tuple[Tensor, int]:
        """The same along `sigmas` [steps + 1]; the first `prefix_steps` are shared with what `shared` has seen."""
        graph = self.graph
        positive = self.conditioning(text)
        done = render(
            self.report(steps, graph.model),
            seed,
            steps,
            graph.cfg,
            graph.sampler_name,
            graph.scheduler,
            positive,
            graph.negative,
            dict(graph.latent),
            sigmas=sigmas,
            prefix_steps=prefix_steps,
            cache=shared,
        )
        samples = done.latent["samples"]
        if not torch.isfinite(samples).all():
            raise RenderError(message("render_not_finite").text())
        return samples, done.evaluations - done.replayed

    def sigmas(self, steps: int) -> tuple[Tensor | None, int]:
        """(what to run along, steps that all counts share); None: the scheduler's own."""
        graph = self.graph
        return shared_sigmas(graph.model, graph.sampler_name, graph.scheduler, self.schedule, steps)

    def decode(self, samples: Tensor) -> Tensor:
        """[F, H, W, 3] on the render device; F = 1 for a picture, up to FRAMES for a video."""
        stop_if_cancelled()
        images = decode(self.graph.vae, {"samples": samples})
        if images.ndim != 4 or images.shape[-1] < 3:
            raise InputError(message("calibrate_no_picture", shape=str(list(images.shape))))
        chosen = torch.linspace(0, images.shape[0] - 1, min(FRAMES, images.shape[0])).round().long()
        images = images[chosen.to(images.device), ..., :3].float()
        if not torch.isfinite(images).all():
            raise RenderError(message("render_not_finite").text())
        if float(images.max() - images.min()) < EMPTY:
            raise RenderError(message("render_empty").text())
        make_room(BYTES_PER_PIXEL * images.shape[1] * images.shape[2])
        return images.clamp(0.0, 1.0).to(render_device())


def _size(conditioning: Any) -> int:
    return sum(tokens.numel() * tokens.element_size() for tokens, _ in conditioning)


class failures:
    """Turns whatever a render raises into a RenderError with its reason; cancel and wrong inputs pass."""

    def __init__(self, careful: bool) -> None:
        self._careful = careful

    def __enter__(self) -> None:
        if self._careful:
            unload_everything()
        stop_if_cancelled()

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if error is None or is_cancel(error) or not isinstance(error, Exception):
            return
        if isinstance(error, (RenderError, InputError, UnsupportedError)):
            return
        if is_out_of_memory(error):
            raise RenderError(message("render_out_of_memory").text()) from error
        raise RenderError(message("render_failed", error=told(error)).text()) from error
