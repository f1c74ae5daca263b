"""One genuine ComfyUI for all host tests of a run, a small random checkpoint, and a planner for it."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS
from budgetfusion_nodes.core.plan import Plan
from budgetfusion_nodes.core.risk import ALPHAS, QUALITIES, RiskTable
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.predictor.features import fit_out_of_distribution, fit_projection
from budgetfusion_nodes.predictor.network import CurvePredictor, PredictorSize
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import save_planner
from research.in_process_host import PACK_ROOT, HostRun, HostSession, import_host, start_host
from research.tiny_scenes_training.training_model import make_random_checkpoint
from tests.fixtures.graphs import link, node

CHECKPOINT = "random.safetensors"
PLANNER = "random_planner.safetensors"
HOST_TYPES = ("MODEL", "CONDITIONING", "LATENT", "IMAGE", "MASK", "VAE", "CLIP_VISION", "CONTROL_NET", "STRING")
PROMPTS = (
    "a plain red background",
    "two large blue circles on a green background",
    "three small outlined squares on fine yellow and black checks",
    "a tiny striped star",
    "six small white crosses on a wall of pink bricks",
)


@pytest.fixture(scope="session")
def session(host_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> HostSession:
    """The host with the pack loaded by its own loader."""
    torch.set_num_threads(1)
    import_host(host_dir)  # first: it chooses PyTorch's attention, as a GPU would; the one for CPUs is slow
    session = start_host(host_dir, tmp_path_factory.mktemp("base"), [PACK_ROOT])
    for kind in (*HOST_TYPES, "BUDGET_PLAN"):
        session.node_classes[f"Given{kind}"] = _given(kind)
    return session


@pytest.fixture(scope="session")
def pack(session: HostSession) -> Callable[[str], ModuleType]:
    """`pack("planning.service")`: the module as the host loaded it, which is not the one that tests import by name."""
    root = str(PACK_ROOT).replace(".", "_x_")
    return lambda name: importlib.import_module(f"{root}.budgetfusion_nodes.{name}")


@pytest.fixture
def read(pack: Callable[[str], ModuleType]) -> Callable[[Any], Any]:
    """Reads the identity of a MODEL."""
    return pack("host.identity").read_identity


@dataclass(frozen=True)
class Loaded:
    """What Load Checkpoint gave, and prompts encoded by it."""

    model: Any
    clip: Any
    vae: Any

    def encode(self, text: str) -> list[Any]:
        return sys.modules["nodes"].CLIPTextEncode().encode(self.clip, text)[0]


@pytest.fixture(scope="session")
def loaded(session: HostSession) -> Loaded:
    """A Tiny Scenes checkpoint with random weights, through the host's own loader."""
    path = session.base_dir / "models" / "checkpoints" / CHECKPOINT
    make_random_checkpoint(path, seed=0)
    with torch.inference_mode():
        return Loaded(*sys.modules["nodes"].CheckpointLoaderSimple().load_checkpoint(CHECKPOINT))


@pytest.fixture(scope="session")
def setting(loaded: Loaded, pack: Callable[[str], ModuleType]) -> Setting:
    """The random checkpoint at the setting of the example graphs."""
    found = pack("host.identity").read_identity(loaded.model)
    sampling = found.sampling.text()
    return Setting(
        found.known(), "dpmpp_2m", "karras", 3.0, 64, 64, model_name=found.name, precision="fp32", sampling=sampling
    )


@pytest.fixture(scope="session")
def planner(session: HostSession, loaded: Loaded, setting: Setting) -> Planner:
    """A planner with random networks around e = 2 / n, saved where an artist would put theirs."""
    made = make_planner("random planner", setting, [loaded.encode(text)[0] for text in PROMPTS])
    folder = session.base_dir / "models" / "budgetfusion"
    folder.mkdir(parents=True, exist_ok=True)
    save_planner(folder / PLANNER, made, {"made": "by the tests"})
    return made


@pytest.fixture
def planner_file(session: HostSession, planner: Planner) -> Path:
    return session.base_dir / "models" / "budgetfusion" / PLANNER


def make_planner(name: str, setting: Setting, entries: list[Any]) -> Planner:
    tokens = [entry[0][0].float() for entry in entries]
    pooled = [entry[1]["pooled_output"][0].float() for entry in entries]
    projection = fit_projection(torch.cat(tokens), torch.stack(pooled), width=4)
    torch.manual_seed(0)
    size = PredictorSize(projection.token_weight.shape[1], projection.pooled_weight.shape[1])
    network = CurvePredictor(size, DEFAULT_GRID, METRICS)
    falling = torch.tensor([2.0 / n for n in DEFAULT_GRID]) - 2.0 / DEFAULT_GRID[-1]
    network.baseline.copy_(falling[:, None, None] * torch.tensor([0.6, 1.0, 1.5]))
    summaries = torch.stack([projection(t, p).summary() for t, p in zip(tokens, pooled, strict=True)])
    theta = tuple(tuple((1.0 - q) * (1.0 + alpha) for q in QUALITIES) for alpha in ALPHAS)
    return Planner(
        name=name,
        setting=setting,
        grid=DEFAULT_GRID,
        metrics=METRICS,
        scale=(6.0, 0.5, 0.3),
        backends=dict.fromkeys(METRICS, "untold"),
        projection=projection,
        networks=(network.eval(),),
        risk_table=RiskTable(ALPHAS, QUALITIES, theta, prompts=200),
        out_of_distribution=fit_out_of_distribution(summaries, summaries),
    )


@dataclass(frozen=True)
class Bench:
    """Builds and runs graphs around the random checkpoint."""

    session: HostSession
    given: dict[str, Any]

    def value(self, thing: Any) -> str:
        """A key under which a Given node hands `thing` into a graph."""
        key = f"value {len(self.given)}"
        self.given[key] = thing
        return key

    def base(self, prompt: str = PROMPTS[1], batch: int = 1, width: int = 64) -> dict[str, Any]:
        """Loader 1, prompts 2 and 3, latent 4."""
        return {
            "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "2": node("CLIPTextEncode", text=prompt, clip=link("1", 1)),
            "3": node("CLIPTextEncode", text="", clip=link("1", 1)),
            "4": node("EmptyLatentImage", width=width, height=64, batch_size=batch),
        }

    def decoded(self, kind: str, **changes: Any) -> dict[str, Any]:
        """A node on the base graph that renders and decodes: Step Sweep, Learn."""
        inputs = {
            "model": link("1"),
            "positive": link("2"),
            "negative": link("3"),
            "latent_image": link("4"),
            "vae": link("1", 2),
            "seed": 5,
            "cfg": 3.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
        }
        return node(kind, **{**inputs, **changes})

    def adaptive(self, **changes: Any) -> dict[str, Any]:
        """An Adaptive KSampler on the base graph."""
        inputs = {
            "model": link("1"),
            "seed": 5,
            "quality": 0.8,
            "max_steps": 12,
            "cfg": 3.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "positive": link("2"),
            "negative": link("3"),
            "latent_image": link("4"),
            "denoise": 1.0,
            "min_steps": 2,
            "risk": 0.1,
            "planner": "auto",
        }
        return node("BudgetFusion_AdaptiveKSampler", **{**inputs, **changes})

    def planner(self, **changes: Any) -> dict[str, Any]:
        """A Budget Planner on the base graph."""
        inputs = {
            "model": link("1"),
            "positive": link("2"),
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "cfg": 3.0,
            "quality": 0.8,
            "min_steps": 2,
            "max_steps": 50,
            "risk": 0.1,
            "planner": "auto",
            "latent_image": link("4"),
        }
        return node("BudgetFusion_BudgetPlanner", **{**inputs, **changes})

    def run(self, graph: Mapping[str, Any], show: str | None = None) -> HostRun:
        """Executes; `show` names a node whose first output is looked at, where the graph has no output node."""
        shown = {} if show is None else {"show": node("PreviewAny", source=link(show))}
        return self.session.execute({**graph, **shown})

    def plan(self, graph: Mapping[str, Any] | None = None, **changes: Any) -> Plan:
        """The plan that a Budget Planner on `graph` shows."""
        run = self.run({**(graph or self.base()), "5": self.planner(**changes)})
        (shown,) = run.ui["5"]["budget_plan"]
        return Plan.from_dict(shown)


@pytest.fixture
def bench(session: HostSession, loaded: Loaded, planner: Planner) -> Bench:
    session.clear_cache()
    return Bench(session, _GIVEN)


# ---------------------------------------------------------------------------- values that no stock node can make

_GIVEN: dict[str, Any] = {}


def _given(kind: str) -> type:
    """A node with one output of the host type `kind`: the value that a test put under `key`."""

    def give(self: Any, key: str) -> tuple[Any]:
        del self
        return (_GIVEN[key],)

    return type(
        f"Given{kind}",
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: {"required": {"key": ("STRING", {})}}),
            "RETURN_TYPES": (kind,),
            "FUNCTION": "give",
            "CATEGORY": "tests",
            "give": give,
        },
    )


@pytest.fixture
def make_node() -> Callable[..., dict[str, Any]]:
    return node


@pytest.fixture
def to() -> Callable[..., list[Any]]:
    """`to("4", 0)`: a link to an output."""
    return link


@pytest.fixture
def save_variant(session: HostSession, planner: Planner) -> Any:
    """Saves a changed copy of the planner under its own name for one test; removes it afterwards."""
    written: list[Path] = []

    def save(file: str, **changes: Any) -> Path:
        path = session.base_dir / "models" / "budgetfusion" / file
        save_planner(path, replace(planner, **changes))
        written.append(path)
        return path

    yield save
    for path in written:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ calibration


FOREIGN = "foreign.safetensors"


@pytest.fixture
def store(pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of this test's own."""
    path = tmp_path / "calibration.sqlite3"
    monkeypatch.setattr(pack("calibration.host_job"), "store_path", lambda: path)
    return path


@pytest.fixture
def planners(session: HostSession, tmp_path: Path) -> Iterator[Path]:
    """The artist's planner folder, empty, and no shipped one."""
    folders, endings = sys.modules["folder_paths"].folder_names_and_paths["budgetfusion"]
    own = tmp_path / "planners"
    sys.modules["folder_paths"].folder_names_and_paths["budgetfusion"] = ([str(own)], endings)
    session.clear_cache()
    yield own
    sys.modules["folder_paths"].folder_names_and_paths["budgetfusion"] = (folders, endings)
    session.clear_cache()


@pytest.fixture(scope="module")
def foreign(session: HostSession) -> str:
    """Tiny Scenes under another name, as a checkpoint that the pack knows nothing of."""
    target = session.base_dir / "models" / "checkpoints" / FOREIGN
    shutil.copy(PACK_ROOT / "weights" / "checkpoints" / "tiny_scenes.safetensors", target)
    sys.modules["folder_paths"].filename_list_cache.pop("checkpoints", None)
    return FOREIGN
