"""Nothing that is read from a disk or a network is unpickled: it would run whatever the file says."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from models.hf import HfBackbone, HfConfig
from models.subq.checkpoint import load_checkpoint
from pipeline.errors import DysraError

ROOT = Path(__file__).resolve().parents[1]
OURS = ("actors", "infra", "models", "pipeline", "rl")
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal", "jsonpickle"}
MAY_NAME_PICKLE = {
    # for the name of the error that torch.load(weights_only=True) raises for a pickle that it refuses
    "infra/training/backbone_loop.py",
    "rl/loops.py",
}
RLLIB = {
    # RLlib's own checkpoint, written and read by one training run in its own folder; what ships is safetensors
    "rl/ppo.py": {"restore_from_path"},
}
FORBIDDEN_CALLS = {
    "read_pickle", "restore_from_path", "from_checkpoint", "unsafe_load", "full_load",
    "load_model",  # of MLflow: a flavour's own pickle
    "all_gather_object", "gather_object", "scatter_object_list", "broadcast_object_list", "recv_object_list",
}  # fmt: skip
FORBIDDEN_NAMES = {"torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"}
MAY_BE_PICKLED = {
    # a model that the operator names for a peer of a benchmark; transformers reads it with weights_only
    "infra/bench/peers/kvpress_worker.py",
}


def _called(node: ast.Call) -> str:
    """The dotted name that is called, as far as it is names."""
    parts: list[str] = []
    at: ast.expr = node.func
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    return ".".join(reversed([*parts, at.id if isinstance(at, ast.Name) else "?"]))


def findings(source: str, name: str) -> list[str]:
    """What in a module could unpickle."""
    wrong: list[str] = []
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        if name not in MAY_NAME_PICKLE:
            wrong += [
                f"imports {m}" for m in modules if FORBIDDEN_MODULES & {m.split(".")[0], m.split(".")[-1]}
            ]
        if not isinstance(node, ast.Call):
            continue
        called, given = _called(node), {word.arg: word.value for word in node.keywords}
        last = called.rpartition(".")[2]
        if called in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
            wrong.append(f"calls {called}")
        if last in FORBIDDEN_CALLS - RLLIB.get(name, set()) or called in FORBIDDEN_NAMES:
            wrong.append(f"calls {called}")
        if called == "torch.load" and not _is(given.get("weights_only"), True):
            wrong.append("calls torch.load without weights_only=True")
        if "allow_pickle" in given and not _is(given["allow_pickle"], False):
            wrong.append(f"calls {called} with allow_pickle")
        if called == "yaml.load":
            wrong.append("calls yaml.load instead of yaml.safe_load")
        if called in ("eval", "exec"):
            wrong.append(f"calls {called}")
        reads_weights = last == "from_pretrained" and "AutoModel" in called and name not in MAY_BE_PICKLED
        if reads_weights and not _is(given.get("use_safetensors"), True):
            wrong.append(f"calls {called} without use_safetensors=True")
        if last in ("from_pretrained", "load_checkpoint") and _is(given.get("trust_remote_code"), True):
            wrong.append(f"calls {called} with trust_remote_code")
    return [f"{name}: {what}" for what in wrong]


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("folder", OURS)
def test_no_module_can_unpickle(folder: str) -> None:
    """By its imports and its calls: weights are safetensors, arrays plain, the rest JSON, msgpack and Arrow."""
    wrong: list[str] = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        wrong += findings(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "pandas.read_pickle(path)",
        "RLModule.from_checkpoint(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
        "AutoModel.from_pretrained(folder)",
        "import ray.cloudpickle",
        "mlflow.pyfunc.load_model(address)",
        "dist.all_gather_object(found, one)",
        "torch.jit.load(path)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    """Each of the forbidden ways is seen."""
    assert findings(line, "models/example.py")


class Trap:
    """Writes a file if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (_spring, (str(self.path), "sprung"))


def _spring(path: str, text: str) -> None:
    Path(path).write_text(text)


def test_planted_pickles_are_refused(tmp_path: Path) -> None:
    """A model's folder, a checkpoint and an array that hold a pickle raise, and what they would run does not."""
    sprung = tmp_path / "sprung"
    model = tmp_path / "model"
    model.mkdir()
    torch.save({"weight": Trap(sprung)}, model / "pytorch_model.bin")
    (model / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    np.save(tmp_path / "array.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    with pytest.raises((ValueError, OSError, RuntimeError, DysraError)):
        HfBackbone.load(HfConfig(model=str(model), device="cpu"))
    with pytest.raises(ValueError):
        np.load(tmp_path / "array.npy")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    torch.save(Trap(sprung), checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises((ValueError, OSError, RuntimeError, DysraError, KeyError)):
        load_checkpoint(checkpoint)
    assert not sprung.exists()
