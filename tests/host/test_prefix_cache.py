"""Replayed beginnings in the genuine host: the same bits as from scratch, and never an answer to another question."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.errors import UnsupportedError
from budgetfusion_nodes.core.schedule import NestedSchedule
from budgetfusion_nodes.host.prefix_cache import DRAFTS, Evaluation, PrefixCache, run_key
from budgetfusion_nodes.host.sampling import EVALUATIONS, PLANNED, SUPPORTED, Render, nfe, render
from budgetfusion_nodes.host.schedule import check_nestable, nested_sigmas
from tests.fixtures.tiny_models import make_tiny

PREFIX = 3
SCHEDULE = NestedSchedule(PREFIX, 1.0)
LATENT = {"samples": torch.zeros(1, 3, 32, 32)}


@pytest.fixture(autouse=True)
def empty() -> Any:
    DRAFTS.clear()
    yield
    DRAFTS.clear()


@pytest.fixture
def run(loaded: Any, setting: Any) -> Callable[..., tuple[Render, int]]:
    """(steps, changes) -> (the render along SCHEDULE, how often the denoiser was really evaluated)."""
    del setting

    def run(steps: int, **changes: Any) -> tuple[Render, int]:
        given = {"model": loaded.model, "seed": 5, "cfg": 3.0, "sampler_name": "euler", "scheduler": "karras"}
        given |= {"positive": loaded.encode("a red circle"), "negative": loaded.encode(""), "latent_image": LATENT}
        given |= {"denoise": 1.0, **changes}
        model = given.pop("model")
        sigmas = nested_sigmas(
            model, given["sampler_name"], given["scheduler"], SCHEDULE, steps, float(given["denoise"])
        )
        calls: list[int] = []
        with torch.inference_mode():
            done = render(counting(model, calls), steps=steps, sigmas=sigmas, prefix_steps=PREFIX, **given)
        return done, len(calls)

    return run


def counting(model: Any, calls: list[int]) -> Any:
    kinds = sys.modules["comfy.patcher_extension"].WrappersMP
    clone = model.clone()

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return executor(*args, **kwargs)

    clone.add_wrapper_with_key(kinds.APPLY_MODEL, "budgetfusion_count", count)
    return clone


def samples(done: Render) -> torch.Tensor:
    return done.latent["samples"]


@pytest.mark.parametrize("sampler_name", sorted({*SUPPORTED, "dpmpp_2m_sde", "dpmpp_sde"} - {"dpm_fast"}))
def test_a_longer_run_costs_the_tail_alone_and_is_the_same_picture(run: Any, sampler_name: str) -> None:
    run(PREFIX + 4, sampler_name=sampler_name)
    longer, evaluated = run(PREFIX + 6, sampler_name=sampler_name)
    DRAFTS.clear()
    scratch, whole = run(PREFIX + 6, sampler_name=sampler_name)
    assert torch.equal(samples(longer), samples(scratch))
    assert whole == nfe(sampler_name, PREFIX + 6) == longer.evaluations
    assert longer.replayed == whole - evaluated
    looks_ahead = sampler_name == "heunpp2"  # the last evaluation of its last common step is at the next step's sigma
    assert longer.replayed >= PREFIX * EVALUATIONS[PLANNED[sampler_name]] - looks_ahead
    assert scratch.replayed == 0
    DRAFTS.clear()
    shorter_last, _ = run(PREFIX + 1, sampler_name=sampler_name)  # look-ahead near the end must not leak either
    after, _ = run(PREFIX + 6, sampler_name=sampler_name)
    assert torch.equal(samples(after), samples(scratch))
    assert not torch.equal(samples(shorter_last), samples(scratch))


def lora(model: Any, strength: float) -> Any:
    name = next(k for k in model.model.state_dict() if k.endswith("weight") and model.model.state_dict()[k].ndim == 2)
    clone = model.clone()
    difference = torch.ones_like(model.model.state_dict()[name])
    clone.add_patches({name: (difference,)}, strength)
    return clone


def area(conditioning: Any) -> Any:
    return [[tokens, {**extra, "area": (16, 32, 0, 0), "strength": 1.0}] for tokens, extra in conditioning]


def late(conditioning: Any) -> Any:
    return [[tokens, {**extra, "start_percent": 0.2, "end_percent": 1.0}] for tokens, extra in conditioning]


def shifted(model: Any) -> Any:
    sampling = model.get_model_object("model_sampling")
    other = type(sampling)(model.model.model_config)
    other.set_sigmas(sampling.sigmas * 1.01)
    clone = model.clone()
    clone.add_object_patch("model_sampling", other)
    return clone


def masked(latent: Any) -> Any:
    mask = torch.zeros(1, 32, 32)
    mask[:, :16] = 1
    return {**latent, "noise_mask": mask}


CHANGES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "prompt": lambda loaded: {"positive": loaded.encode("a blue star")},
    "negative": lambda loaded: {"negative": loaded.encode("grey")},
    "area": lambda loaded: {"positive": area(loaded.encode("a red circle"))},
    "range": lambda loaded: {"positive": late(loaded.encode("a red circle"))},
    "seed": lambda loaded: {"seed": 6},
    "cfg": lambda loaded: {"cfg": 3.5},
    "no negative": lambda loaded: {"cfg": 1.0},
    "sampler": lambda loaded: {"sampler_name": "dpmpp_2m"},
    "size": lambda loaded: {"latent_image": {"samples": torch.zeros(1, 3, 32, 48)}},
    "batch": lambda loaded: {"latent_image": {"samples": torch.zeros(2, 3, 32, 32)}},
    "picture": lambda loaded: {"latent_image": {"samples": torch.full((1, 3, 32, 32), 0.1)}, "denoise": 0.8},
    "mask": lambda loaded: {"latent_image": masked(LATENT)},
    "noise index": lambda loaded: {"latent_image": {**LATENT, "batch_index": [3]}},
    "denoise": lambda loaded: {"denoise": 0.9},
    "LoRA": lambda loaded: {"model": lora(loaded.model, 0.05)},
    "sampling": lambda loaded: {"model": shifted(loaded.model)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_question_never_gets_an_old_answer(run: Any, loaded: Any, change: str) -> None:
    changes = CHANGES[change](loaded)
    run(PREFIX + 3)
    found, _ = run(PREFIX + 3, **changes)
    DRAFTS.clear()
    scratch, _ = run(PREFIX + 3, **changes)
    assert found.replayed == 0
    assert torch.equal(samples(found), samples(scratch))


def test_the_strength_of_a_lora_is_told_apart_and_its_own_draft_is_found(run: Any, loaded: Any) -> None:
    weak, strong = lora(loaded.model, 0.05), lora(loaded.model, 0.1)
    run(PREFIX + 2, model=weak)
    other, _ = run(PREFIX + 3, model=strong)
    same, _ = run(PREFIX + 3, model=weak)
    assert (other.replayed, same.replayed) == (0, PREFIX + 1)
    DRAFTS.clear()
    assert torch.equal(samples(same), samples(run(PREFIX + 3, model=weak)[0]))


@pytest.mark.parametrize("change", ["mask", "picture", "batch", "area", "denoise", "sampling", "no negative"])
def test_what_a_ksampler_can_do_is_replayed_too(run: Any, loaded: Any, change: str) -> None:
    changes = CHANGES[change](loaded)
    run(PREFIX + 3, **changes)
    found, _ = run(PREFIX + 5, **changes)
    DRAFTS.clear()
    scratch, _ = run(PREFIX + 5, **changes)
    assert found.replayed >= PREFIX
    assert torch.equal(samples(found), samples(scratch))


def test_guidance_functions_run_again_over_replayed_answers(run: Any, loaded: Any) -> None:
    """Momentum guidance keeps a state: it must see every evaluation; what it evaluates itself is no answer of ours."""

    def guided(weight: float) -> Any:
        clone, sums = loaded.model.clone(), [0.0]

        def momentum(args: dict[str, Any]) -> Any:
            sums[0] = 0.5 * sums[0] + args["denoised"]
            options = {**args["model_options"]}
            samplers = sys.modules["comfy.samplers"]
            (own,) = samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
            return args["denoised"] + 0.01 * sums[0] + weight * own

        clone.set_model_sampler_post_cfg_function(momentum)
        return clone

    run(PREFIX + 2, model=guided(0.1))
    found, _ = run(PREFIX + 4, model=guided(0.1))
    other, _ = run(PREFIX + 4, model=guided(0.2))
    DRAFTS.clear()
    assert torch.equal(samples(found), samples(run(PREFIX + 4, model=guided(0.1))[0]))
    DRAFTS.clear()
    assert torch.equal(samples(other), samples(run(PREFIX + 4, model=guided(0.2))[0]))
    assert found.replayed == PREFIX + 1
    assert other.replayed <= 1


def test_what_cannot_be_read_is_not_kept(loaded: Any) -> None:
    kinds = sys.modules["comfy.patcher_extension"]
    patched, wrapped, called, replaced = (loaded.model.clone() for _ in range(4))
    patched.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    wrapped.add_wrapper_with_key(kinds.WrappersMP.DIFFUSION_MODEL, "another pack", lambda e, *a, **k: e(*a, **k))
    called.add_callback_with_key(kinds.CallbacksMP.ON_PRE_RUN, "another pack", lambda *a: None)
    replaced.set_model_unet_function_wrapper(lambda apply, call: apply(call["input"], call["timestep"], **call["c"]))
    for model in (patched, wrapped, called, replaced):
        assert run_key(model, 1) is None
    assert run_key(loaded.model, [[torch.zeros(1), {"control": object()}]]) is None
    assert run_key(loaded.model, 1) is not None
    assert run_key(loaded.model, 1) != run_key(loaded.model, True)


def test_an_interrupted_draft_is_finished(run: Any) -> None:
    """Stopped while it was made, and again in the middle of its replay."""
    from research.in_process_host import interrupted_after

    interrupted = sys.modules["comfy.model_management"].InterruptProcessingException
    with interrupted_after(2), pytest.raises(interrupted):
        run(PREFIX + 5)
    found, _ = run(PREFIX + 5)
    assert 1 <= found.replayed <= PREFIX + 1  # the prefix and the evaluation after it
    with interrupted_after(2), pytest.raises(interrupted):
        run(PREFIX + 6)
    again, _ = run(PREFIX + 5)
    assert again.replayed == PREFIX + 1
    DRAFTS.clear()
    scratch, _ = run(PREFIX + 5)
    assert torch.equal(samples(found), samples(scratch)) and torch.equal(samples(again), samples(scratch))


def test_another_scheduler_takes_what_it_has_in_common_and_no_more(run: Any) -> None:
    """Where both begin with the same noise at the very same sigma, that evaluation is the same question."""
    run(PREFIX + 3)
    found, _ = run(PREFIX + 3, scheduler="normal")
    DRAFTS.clear()
    assert found.replayed <= 1
    assert torch.equal(samples(found), samples(run(PREFIX + 3, scheduler="normal")[0]))


@pytest.mark.parametrize("family", ["flux", "wan"])
def test_flow_models_with_one_conditioning_and_videos_in_batches(session: Any, family: str) -> None:
    """euler and simple at cfg 1, four at once; a twin of other weights and another shift are other questions."""
    del session
    tiny, twin = make_tiny(family), make_tiny(family, seed=1)
    latent = {"samples": tiny.latent["samples"].repeat(4, *[1] * (tiny.latent["samples"].ndim - 1))}
    sampling = sys.modules["comfy.model_sampling"]

    def run(model: Any, steps: int, positive: Any = tiny.positive) -> Render:
        sigmas = nested_sigmas(model, "euler", "simple", NestedSchedule(2, 0.8, tail_end=0.0), steps)
        inputs = (model, 5, steps, 1.0, "euler", "simple", positive, tiny.negative, latent)
        with torch.inference_mode():
            return render(*inputs, sigmas=sigmas, prefix_steps=2)

    shifted = tiny.model.clone()
    own = tiny.model.get_model_object("model_sampling")
    patch = type("Shifted", (type(own), sampling.CONST), {})(tiny.model.model.model_config)
    patch.set_parameters(shift=own.shift * 1.1)
    shifted.add_object_patch("model_sampling", patch)
    guided = [[tokens, {**more, "guidance": 5.0}] for tokens, more in tiny.positive]
    run(tiny.model, 4)
    others = [(twin.model, 5), (shifted, 5), (tiny.model, 5, guided)]
    found, wrong = run(tiny.model, 6), [run(*other) for other in others]
    assert found.replayed == 3 and [one.replayed for one in wrong] == [0, 0, 0]
    for one, arguments in zip((found, *wrong), ((tiny.model, 6), *others), strict=True):
        DRAFTS.clear()
        assert samples(one).shape[0] == 4 and torch.equal(samples(one), samples(run(*arguments)))


def test_dpm_fast_spaces_its_own_steps() -> None:
    with pytest.raises(UnsupportedError, match="dpm_fast"):
        check_nestable("dpm_fast")
    with pytest.raises(UnsupportedError, match="euler_ancestral"):
        check_nestable("euler_ancestral")


# --------------------------------------------------------------------------------------------- the store by itself


def evaluation(value: float, numbers: int = 250) -> Evaluation:
    """1,000 bytes and those of a timestep and an answer of 4."""
    return Evaluation(torch.full((numbers,), value), torch.ones(1), (torch.zeros(1),))


def test_least_recently_used_drafts_give_way_within_the_limit() -> None:
    cache = PrefixCache(limit=3 * 1008)
    for key in ("a", "b", "c"):
        assert cache.append(key, evaluation(1.0))
    assert cache.size == 3 * 1008
    cache.draft("a")
    assert cache.append("d", evaluation(1.0))
    assert [len(cache.draft(key)) for key in "abcd"] == [1, 0, 1, 1]
    assert cache.append("d", evaluation(2.0)) and cache.append("d", evaluation(3.0))
    assert not cache.append("d", evaluation(4.0)), "a draft's own beginning does not give way"
    assert [len(cache.draft(key)) for key in "acd"] == [0, 0, 3]
    assert cache.size == 3 * 1008
    assert not cache.append("e", evaluation(1.0, 10_000))
    assert len(cache.draft("d")) == 3
    cache.cut("d", 1)
    assert cache.size == 1008
    cache.clear()
    assert cache.size == 0 and cache.draft("d") == ()


def test_drafts_hold_no_tensor_objects() -> None:
    """Each would pin a hole in the heap for as long as the draft stays (_Pages)."""

    def tensors() -> int:
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    cache = PrefixCache()
    before = tensors()
    for value in range(100):
        cache.append("a", evaluation(float(value)))
    assert tensors() < before + 100
    kept = cache.draft("a")[99]
    assert kept.answers(torch.full((250,), 99.0), torch.ones(1))
    assert [one.tolist() for one in kept.out] == [[0.0]]


def test_an_answer_is_to_these_bits_only() -> None:
    kept = evaluation(1.0)
    assert kept.answers(torch.full((250,), 1.0), torch.ones(1))
    other = torch.full((250,), 1.0)
    other[7] = torch.nextafter(other[7], torch.tensor(2.0))
    assert not kept.answers(other, torch.ones(1))
    assert not kept.answers(torch.full((250,), 1.0), torch.full((1,), 1.001))
    assert not kept.answers(torch.full((251,), 1.0), torch.ones(1))
    assert not kept.answers(torch.full((250,), 1.0, dtype=torch.float64), torch.ones(1))
