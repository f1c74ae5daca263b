"""A base directory for the page test: the pack, an untrained checkpoint, a planner for it that is not in place yet.

    python tests/web/make_base.py <ComfyUI folder> <new folder>

The planner lies in <new folder>/held/ until the test has seen the page without one.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from budgetfusion_nodes.core.setting import Setting  # noqa: E402
from budgetfusion_nodes.metrics.measure import Backends  # noqa: E402
from budgetfusion_nodes.predictor.planner_file import save_planner  # noqa: E402
from research.in_process_host import start_host  # noqa: E402
from research.tiny_scenes_training.training_model import make_random_checkpoint  # noqa: E402

CHECKPOINT = "tiny_scenes.safetensors"  # as the example graphs name it
MARKUP = "<img src=x class=bf-evil onerror=console.error(/bf-ran/)>"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}


def host_tests():
    """tests/host/conftest.py, whose planner is used here too."""
    spec = importlib.util.spec_from_file_location("host_conftest", ROOT / "tests" / "host" / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(host_dir: str, base: Path) -> None:
    for folder in ("custom_nodes", "models/checkpoints", "models/budgetfusion", "held", "user/default"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "budgetfusion").symlink_to(ROOT, target_is_directory=True)
    (base / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    tests = host_tests()  # before the host is there, which has a folder `tests` too
    with tempfile.TemporaryDirectory() as scratch:
        start_host(host_dir, scratch, [ROOT])
        root = str(ROOT).replace(".", "_x_")
        identity = importlib.import_module(f"{root}.budgetfusion_nodes.host.identity")
        made = make_random_checkpoint(Path(scratch) / "models/checkpoints" / CHECKPOINT, seed=0)
        shutil.copy(made, base / "models/checkpoints" / CHECKPOINT)
        model, clip, _vae = sys.modules["nodes"].CheckpointLoaderSimple().load_checkpoint(CHECKPOINT)
        found = identity.read_identity(model)
        told = {"model_name": found.name, "sampling": found.sampling.text()}
        setting = Setting(found.known(), "dpmpp_2m", "karras", 3.0, 64, 64, **told)
        entries = [tests.Loaded(model, clip, _vae).encode(text)[0] for text in tests.PROMPTS]
        planner = tests.make_planner("page test planner", setting, entries)
        # the backends that the Probe will take, so that it can tell quality
        planner = dataclasses.replace(planner, backends=Backends.from_values("auto", "auto", None).names())
        save_planner(base / "held/page_test.safetensors", planner, {"made": "by the page test"})
        save_planner(base / "held/markup.safetensors", dataclasses.replace(planner, name=MARKUP))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
