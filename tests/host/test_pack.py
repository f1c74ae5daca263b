"""The pack as ComfyUI loads it: linked, copied, and without importing anything early."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from research.in_process_host import PACK_ROOT, HostStartError, HostValidationError, start_host

NAMES = ("BudgetPlanner", "AdaptiveKSampler", "StepSweep", "PerceptualMetricProbe", "Calibrate", "BlindTest", "Learn")
IDS = {f"BudgetFusion_{name}" for name in NAMES}
NOT_SHIPPED = shutil.ignore_patterns(".*", "__pycache__", "demo_out", "node_modules")


def link(target: Path) -> None:
    try:
        target.symlink_to(PACK_ROOT, target_is_directory=True)
    except OSError:  # Windows without developer mode
        pytest.skip("this system does not allow symbolic links")


def copy(target: Path) -> None:
    shutil.copytree(PACK_ROOT, target, ignore=NOT_SHIPPED)


@pytest.mark.parametrize("install", [link, copy])
def test_cloned_into_custom_nodes(session: Any, bench: Any, install: Any) -> None:
    """Through the host's own `init_external_custom_nodes`, under a name with a dot and a space."""
    folder = session.base_dir / "custom_nodes" / f"Budget Fusion.{install.__name__}"
    before = {name: session.node_classes.pop(name) for name in IDS}
    folder_paths = sys.modules["folder_paths"]
    kinds = ("checkpoints", "budgetfusion")
    listed = {kind: list(folder_paths.folder_names_and_paths[kind][0]) for kind in kinds}
    try:
        install(folder)
        session.load_external()
        made = {name: session.node_classes[name] for name in IDS}
        root = str(folder).replace(".", "_x_")
        assert all(cls.__module__.startswith(root) for cls in made.values())
        web = sys.modules["nodes"].EXTENSION_WEB_DIRS
        assert Path(web[folder.name]).samefile(PACK_ROOT / "budgetfusion_nodes/web") or install is copy
        session.clear_cache()
        run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=3)}, show="5")
        assert run.outputs["5"][1] <= 3
        assert run.ui["5"]["receipt"][0]["fallback"] is None
        families = [m for m in sys.modules["comfy.supported_models"].models if "TinyScenes" in m.__name__]
        names = [family.__name__ for family in families]
        assert len(set(names)) == len(names), "a model family is registered once however many copies there are"
    finally:
        session.node_classes.update(before)
        for kind in kinds:  # the host keeps a list of folders, and this one is about to go
            folder_paths.folder_names_and_paths[kind][0][:] = listed[kind]
            folder_paths.filename_list_cache.pop(kind, None)
        sys.modules["nodes"].EXTENSION_WEB_DIRS.pop(folder.name, None)
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        session.clear_cache()


def test_folders_are_the_hosts_too(session: Any) -> None:
    folder_paths = sys.modules["folder_paths"]
    assert str(PACK_ROOT / "weights" / "checkpoints") in folder_paths.get_folder_paths("checkpoints")
    own, *_ = folder_paths.get_folder_paths("budgetfusion")
    assert Path(own) == session.base_dir / "models" / "budgetfusion", "the artist's folder comes first"


def test_every_input_and_output_has_a_tooltip(session: Any) -> None:
    for name, info in session.object_info(*IDS).items():
        for section in ("required", "optional"):
            for key, spec in info["input"].get(section, {}).items():
                assert len(spec[1]["tooltip"]) > 15, (name, key)
        assert len(info["output_tooltips"]) == len(info["output"])
        assert all(info["output_tooltips"]), name
        assert info["category"] == "BudgetFusion"
        assert len(info["description"]) > 40


def test_advanced_inputs_and_aliases_are_dropped_for_older_hosts(session: Any, pack: Any) -> None:
    del session
    known = pack("nodes.schema").known

    def older(name: str, tooltip: str) -> dict[str, str]:
        return {"name": name, "tooltip": tooltip}

    assert known(older, "a", tooltip="b", advanced=True) == {"name": "a", "tooltip": "b"}
    with pytest.raises(TypeError):
        known(older, "a", tooltip="b", misspelt=True)


def test_importing_the_pack_imports_neither_host_nor_torch() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('pack', {str(PACK_ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(PACK_ROOT)!r}])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['pack'] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert module.WEB_DIRECTORY == './budgetfusion_nodes/web'\n"
        "early = {'torch', 'numpy', 'comfy', 'comfy_api', 'pack.budgetfusion_nodes'} & set(sys.modules)\n"
        "assert not early, early\n"
        "assert not hasattr(module, 'NODE_CLASS_MAPPINGS')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_loading_the_nodes_imports_nothing_heavy(host_dir: Path, tmp_path: Path) -> None:
    """In a fresh host: what the pack's entry point adds to sys.modules."""
    code = (
        "import sys\n"
        "from research.in_process_host import PACK_ROOT, start_host\n"
        f"session = start_host({str(host_dir)!r}, {str(tmp_path)!r}, extras=())\n"
        "before = set(sys.modules)\n"
        "session.load_pack(PACK_ROOT)\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = {'matplotlib', 'lpips', 'open_clip', 'dreamsim', 'transformers', 'piq', 'skimage', 'timm', 'pandas'}\n"
        "assert not added & heavy, added & heavy\n"
        "store = ('calibration.schema', 'calibration.memory_reader', 'predictor.memory', 'predictor.memory_fit')\n"
        "opened = [name for name in sys.modules if name.endswith(store)]\n"
        "assert not opened, opened\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACK_ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_error_at_start_is_logged_with_its_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "broken"
    (folder / "budgetfusion_nodes").mkdir(parents=True)
    (folder / "budgetfusion_nodes" / "__init__.py").write_text("raise RuntimeError('half a clone')")
    shutil.copy(PACK_ROOT / "__init__.py", folder)
    spec = importlib.util.spec_from_file_location("broken_pack", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["broken_pack"] = module
    spec.loader.exec_module(module)
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="half a clone"):
        asyncio.new_event_loop().run_until_complete(module.comfy_entrypoint())
    assert "BudgetFusion could not start" in caplog.text
    assert "Traceback" in caplog.text


def test_boot_refuses_what_is_no_host(session: Any, tmp_path: Path) -> None:
    with pytest.raises(HostStartError, match="no ComfyUI folder"):
        start_host(tmp_path, tmp_path)
    assert start_host(session.host_dir, tmp_path) is session, "one host a process"


def test_boot_reports_what_the_host_refuses(session: Any, make_node: Any) -> None:
    with pytest.raises(HostValidationError, match="nowhere"):
        session.execute(
            {
                "1": make_node("CheckpointLoaderSimple", ckpt_name="nowhere.safetensors"),
                "2": make_node("PreviewAny", source=["1", 0]),
            }
        )
    with pytest.raises(HostValidationError):
        session.execute({"1": make_node("NoSuchNode")})
