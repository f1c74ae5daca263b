"""The sampler table against the genuine samplers, driven with an analytic denoiser so that each takes milliseconds."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.errors import UnsupportedError
from budgetfusion_nodes.host.noise import check_settles, same_path
from budgetfusion_nodes.host.sampling import BROWNIAN, PLANNED, SUPPORTED, check_sampler, get_sigmas, nfe

STEPS = 6


@pytest.fixture
def run_sampler(loaded: Any, setting: Any) -> Any:
    """(sampler, steps, noise seed) -> (latent, evaluations) with the denoiser of a Gaussian blob around a picture."""
    del setting

    def run(sampler_name: str, steps: int, noise_seed: int) -> tuple[torch.Tensor, int]:
        calls: list[int] = []
        picture = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
        model = loaded.model.clone()

        def evaluate(apply_model: Any, call: dict[str, Any]) -> torch.Tensor:
            del apply_model
            calls.append(1)
            sigma = call["timestep"].reshape(-1, 1, 1, 1)  # the host hands sigma over under this name
            return (picture * sigma**2 + call["input"]) / (sigma**2 + 1.0)  # denoised of N(picture, 1) data

        model.set_model_unet_function_wrapper(evaluate)
        comfy_sample = sys.modules["comfy.sample"]
        noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        cond = loaded.encode("a red circle")
        with torch.inference_mode():
            latent = comfy_sample.sample(
                model, noise, steps, 1.0, sampler_name, "karras", cond, cond, torch.zeros(1, 3, 4, 4), seed=noise_seed
            )
        return latent, len(calls)

    return run


@pytest.mark.parametrize("sampler_name", sorted(SUPPORTED))
def test_supported_samplers_are_deterministic_and_cost_what_the_table_says(run_sampler: Any, sampler_name: str) -> None:
    first, cost = run_sampler(sampler_name, STEPS, 1)
    again, _ = run_sampler(sampler_name, STEPS, 2)
    assert torch.equal(first, again), "its image depends on fresh noise"
    assert cost == nfe(sampler_name, STEPS)
    assert run_sampler(sampler_name, 2, 1)[1] == nfe(sampler_name, 2)
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("sampler_name", sorted(BROWNIAN))
def test_sde_samplers_settle_on_one_picture_of_their_seed(run_sampler: Any, sampler_name: str) -> None:
    limit, cost = run_sampler(sampler_name, 200, 1)
    assert cost == nfe(sampler_name, 200)
    away = [float((run_sampler(sampler_name, steps, 1)[0] - limit).square().mean().sqrt()) for steps in (6, 25, 100)]
    other = float((run_sampler(sampler_name, 200, 2)[0] - limit).square().mean().sqrt())
    assert away[0] > away[1] > away[2]
    assert away[2] < other / 5, "the distance to another seed's picture is what fresh noise would leave"


def test_samplers_with_fresh_noise_do_not_settle(run_sampler: Any) -> None:
    for name in ("euler_ancestral", "er_sde", "seeds_2"):
        limit = run_sampler(name, 200, 1)[0]
        away = float((run_sampler(name, 100, 1)[0] - limit).square().mean().sqrt())
        other = float((run_sampler(name, 200, 2)[0] - limit).square().mean().sqrt())
        assert away > other / 5, name


@pytest.mark.parametrize(
    ("scheduler", "one_path"),
    [("karras", True), ("exponential", True), ("normal", True), ("simple", True), ("ddim_uniform", False)],
)
def test_the_noise_path_is_one_where_the_schedule_keeps_its_ends(loaded: Any, scheduler: str, one_path: bool) -> None:
    few, many = (get_sigmas(loaded.model, "dpmpp_2m_sde", scheduler, steps) for steps in (8, 40))
    assert same_path(few, many) == one_path
    check_settles("dpmpp_2m", scheduler, few, many)  # no noise, nothing to refuse
    if not one_path:
        with pytest.raises(UnsupportedError, match=f"{scheduler}, dpmpp_2m_sde"):
            check_settles("dpmpp_2m_sde", scheduler, few, many)


def test_span_and_correlation_of_noise_paths_go_together(session: Any) -> None:
    """The host's own noise between two levels, for spans whose lower end moves by less and by more than the limit."""
    del session
    noise_sampler = sys.modules["comfy.k_diffusion.sampling"].BrownianTreeNoiseSampler
    latent = torch.zeros(1, 3, 64, 64)

    def drawn(lowest: float) -> torch.Tensor:
        ends = torch.tensor(lowest), torch.tensor(1.0)
        return noise_sampler(latent, *ends, seed=7, cpu=True)(torch.tensor(0.7), torch.tensor(0.6)).flatten()

    def schedule(lowest: float) -> torch.Tensor:
        return torch.tensor([1.0, lowest, 0.0])

    def correlation(lowest: float) -> float:
        return float(torch.corrcoef(torch.stack([drawn(0.01), drawn(lowest)]))[0, 1])

    assert same_path(schedule(0.01), schedule(0.02)) and correlation(0.02) > 0.7
    assert not same_path(schedule(0.01), schedule(0.3)) and correlation(0.3) < 0.7


def test_every_other_sampler_of_the_host_is_rightly_refused(run_sampler: Any) -> None:
    names = sys.modules["comfy.samplers"].KSampler.SAMPLERS
    assert set(PLANNED) <= set(names)
    for name in set(names) - set(PLANNED) - {"dpm_adaptive"}:
        with pytest.raises(UnsupportedError, match=name):
            check_sampler(name)
        first, again = (run_sampler(name, STEPS, seed)[0] for seed in (1, 2))
        assert not torch.equal(first, again), f"{name} is deterministic and could be supported"


def test_dpm_adaptive_ignores_the_steps(run_sampler: Any) -> None:
    assert run_sampler("dpm_adaptive", 4, 1)[1] == run_sampler("dpm_adaptive", 20, 1)[1]
    with pytest.raises(UnsupportedError, match="chooses its own steps"):
        check_sampler("dpm_adaptive")


@pytest.mark.parametrize("sampler_name", ["dpmpp_2m", "dpm_2", "uni_pc"])
@pytest.mark.parametrize("scheduler", ["karras", "normal", "beta", "ddim_uniform"])
def test_sigmas_are_the_ones_that_ksampler_runs(
    bench: Any, pack: Any, loaded: Any, make_node: Any, to: Any, sampler_name: str, scheduler: str
) -> None:
    seen: list[torch.Tensor] = []
    patcher = sys.modules["comfy.patcher_extension"]
    model = loaded.model.clone()

    def spy(executor: Any, guider: Any, sigmas: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(sigmas.clone())
        return executor(guider, sigmas, *args, **kwargs)

    model.add_wrapper_with_key(patcher.WrappersMP.SAMPLER_SAMPLE, "spy", spy)
    sampler = make_node(
        "KSampler",
        model=to("9"),
        seed=1,
        steps=6,
        cfg=1.0,
        sampler_name=sampler_name,
        scheduler=scheduler,
        positive=to("2"),
        negative=to("3"),
        latent_image=to("4"),
        denoise=1.0,
    )
    graph = {**bench.base(), "9": make_node("GivenMODEL", key=bench.value(model)), "6": sampler}
    bench.run(graph, show="6")
    sigmas = pack("host.sampling").get_sigmas(loaded.model, sampler_name, scheduler, 6)
    assert sigmas.device.type == "cpu"
    assert torch.equal(seen[0].cpu(), sigmas)
    assert sigmas[-1] == 0


def test_planner_sigmas_and_steps_give_the_same_picture_everywhere(bench: Any, make_node: Any, to: Any) -> None:
    """Planner -> stock KSampler, Planner -> SamplerCustomAdvanced and Adaptive KSampler: one latent."""
    graph = {
        **bench.base(),
        "9": bench.planner(quality=0.7, max_steps=8),
        "5": bench.adaptive(quality=0.7, max_steps=8),
        "10": make_node("RandomNoise", noise_seed=5),
        "11": make_node("KSamplerSelect", sampler_name="dpmpp_2m"),
        "12": make_node("CFGGuider", model=to("1"), positive=to("2"), negative=to("3"), cfg=3.0),
        "13": make_node(
            "SamplerCustomAdvanced",
            noise=to("10"),
            guider=to("12"),
            sampler=to("11"),
            sigmas=to("9", 2),
            latent_image=to("4"),
        ),
        "14": make_node(
            "KSampler",
            model=to("1"),
            seed=5,
            steps=to("9", 1),
            cfg=3.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            positive=to("2"),
            negative=to("3"),
            latent_image=to("4"),
            denoise=1.0,
        ),
        "15": make_node("PreviewAny", source=to("13")),
        "16": make_node("PreviewAny", source=to("14")),
    }
    run = bench.run(graph, show="5")
    plan, steps, sigmas, _split = run.outputs["9"]
    assert len(sigmas) == steps + 1 == plan.steps + 1
    latents = [run.outputs[n][0]["samples"] for n in ("5", "13", "14")]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])


@pytest.mark.parametrize(
    ("sampler_name", "steps", "evaluations"),
    [
        ("dpmpp_2m", 10, 10),
        ("heun", 10, 19),
        ("dpm_2", 1, 1),
        ("heunpp2", 10, 27),
        ("heunpp2", 1, 1),
        ("ddim", 0, 0),
        ("heun", 0, 0),
    ],
)
def test_nfe(sampler_name: str, steps: int, evaluations: int) -> None:
    assert nfe(sampler_name, steps) == evaluations


def test_pixel_size(pack: Any, loaded: Any) -> None:
    pixel_size = pack("host.sampling").pixel_size
    assert pixel_size(loaded.model, {"samples": torch.zeros(1, 4, 8, 16), "downscale_ratio_spacial": 8}) == (128, 64)
    assert pixel_size(loaded.model, {"samples": torch.zeros(1, 3, 64, 96)}) == (96, 64)
    assert pixel_size(loaded.model, {"samples": torch.zeros(1, 3, 64)}) == (None, None)
