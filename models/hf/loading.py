"""From a name or a folder to a decoder, its tokenizer and its identity. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer

from models.cache.spec import LayerSpec
from models.digests import check_beside
from models.hf import attention, cut, gemma_gguf
from models.hf.adapter import adapter_folder
from models.hf.config import HfConfig
from models.rotary import RotaryTable

_TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
_NO_ROTARY_TABLE = ("dynamic", "longrope")  # their angles depend on the length of the text


@dataclass(frozen=True, slots=True)
class Loaded:
    """A decoder ready to run, with what a backbone needs beside it."""

    model: Any
    tokenizer: Tokenizer
    identity: str
    end_ids: frozenset[int]


def load(config: HfConfig) -> Loaded:
    """Load as configured; raises ValueError or RuntimeError that names the model and what to change."""
    import transformers

    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    attention.register()
    source, name = _source(config.model)
    if isinstance(source, Path):
        try:
            check_beside(source)
        except ValueError as error:
            again = f"; remove {source}: it is made again" if config.model == gemma_gguf.NAME else ""
            raise ValueError(f"backbone.model {config.model!r}: {error}{again}") from None
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            attn_implementation=attention.NAME,
        )
        tokenizer = _tokenizer(source)
    except Exception as error:  # safetensors and tokenizers raise kinds of their own
        where = "" if isinstance(source, Path) else " (there is no such folder here, so the hub was asked)"
        raise ValueError(f"backbone.model {config.model!r} cannot be loaded{where}: {error}") from error
    weights = _hash_files(source) if isinstance(source, Path) else str(model.config._commit_hash)
    adapter = "none"
    folder = adapter_folder(config)
    if folder is not None:
        model, adapter = _with_adapter(model, folder)
    model.requires_grad_(False).eval().to(device)
    about = {
        k: v for k, v in model.config.to_dict().items() if not k.startswith(("_", "transformers_version"))
    }
    about = {k: v for k, v in about.items() if k not in ("dtype", "torch_dtype", "use_cache")}
    shape = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]
    base = f"{name}:config-{shape}:weights-{weights[:16]}"
    if isinstance(source, Path) and cut.is_cut(source):  # its layers are the whole model's
        base = cut.whole_identity(source)
    identity = f"{base}:adapter-{adapter[:16]}"
    return Loaded(model, tokenizer, identity, _end_ids(model, tokenizer))


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"backbone.device is {name!r}, but torch {torch.__version__} sees no GPU; use cpu or auto"
        )
    return torch.device(name)


def _source(model: str) -> tuple[Path | str, str]:
    """Where to load from, and the name that the identity shows."""
    if model == gemma_gguf.NAME:
        return gemma_gguf.prepared(), model
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"backbone.model {model!r} must hold config.json and *.safetensors; "
                "save it with save_pretrained (pickled weights are not read)"
            )
        return folder, folder.resolve().name
    if folder.is_absolute() or model.startswith(("./", "../", "~")) or model.count("/") > 1:
        raise ValueError(
            f"backbone.model {model!r} is no folder; give {gemma_gguf.NAME}, a folder or a hub name"
        )
    return model, model


def _tokenizer(source: Path | str) -> Tokenizer:
    if isinstance(source, Path) and (source / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    else:
        from transformers import AutoTokenizer

        found = getattr(AutoTokenizer.from_pretrained(source), "backend_tokenizer", None)
        if found is None:
            raise ValueError("its tokenizer has no tokenizer.json; save a fast tokenizer beside the model")
        tokenizer = found
    # text that spells a special token is text: an article cannot end a turn
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(source, Path) and cut.is_cut(source):
        return cut.cut_tokenizer(source, tokenizer)  # type: ignore[return-value]
    return tokenizer


def _with_adapter(model: Any, folder: Path) -> tuple[Any, str]:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"backbone.adapter {str(folder)!r} has no {name}; save it with peft's save_pretrained"
            )
    from peft import PeftModel

    check_beside(folder)
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"backbone.adapter {str(folder)!r} does not fit backbone.model {model.config.name_or_path!r}: {error}"
        ) from error
    return merged, _hash_files(folder)


def _hash_files(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_config.json")]):
        digest.update(path.name.encode())
        with path.open("rb") as handle:
            while block := handle.read(1 << 24):
                digest.update(block)
    return str(digest.hexdigest())


def _end_ids(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    ids: set[Any] = set()
    for owner in (model.config.get_text_config(decoder=True), model.generation_config):
        given = getattr(owner, "eos_token_id", None)
        ids |= set(given) if isinstance(given, list | tuple) else {given}
    ids |= {tokenizer.token_to_id(text) for text in _TURN_ENDS}
    return frozenset(i for i in ids if i is not None)


def layer_specs(model: Any) -> list[LayerSpec]:
    """One spec a layer; raises ValueError for layers or rotary embeddings that the cache cannot serve."""
    config = model.config.get_text_config(decoder=True)
    decoder = model.get_decoder()
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        raise ValueError(f"{config.model_type} has no rotary embedding; the rotating cache needs one")
    window = getattr(config, "sliding_window", None)
    plain = "full_attention" if window is None else "sliding_attention"
    types = getattr(config, "layer_types", None) or [plain] * config.num_hidden_layers
    other = sorted(set(types) - {"full_attention", "sliding_attention"})
    if other:
        raise ValueError(
            f"{config.model_type} has layers of type {', '.join(other)}; the rotating cache serves "
            "full_attention and sliding_attention"
        )
    kinds = json.dumps(getattr(config, "rope_parameters", None) or {}, default=str)
    if any(f'"{kind}"' in kinds for kind in _NO_ROTARY_TABLE):
        raise ValueError(f"{config.model_type} uses a rotary embedding that changes with length: {kinds}")
    weight = next(model.parameters())
    tables = {kind: _table(rotary, kind, weight) for kind in set(types)}
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return [
        LayerSpec(
            index=index,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=head_dim,
            window=window if kind == "sliding_attention" else None,
            scaling=_scaling(decoder.layers[index], head_dim),
            rotary=tables[kind],
            device=weight.device,
            dtype=weight.dtype,
        )
        for index, kind in enumerate(types)
    ]


def _scaling(layer: Any, head_dim: int) -> float:
    module = next(
        (m for m in (getattr(layer, n, None) for n in ("self_attn", "attention")) if m is not None), None
    )
    return float(getattr(module, "scaling", head_dim**-0.5))


def _table(rotary: Any, kind: str, weight: torch.Tensor) -> RotaryTable:
    like = torch.zeros(1, device=weight.device, dtype=torch.float32)
    by_kind = "layer_type" in inspect.signature(rotary.forward).parameters

    def angles(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            cos, sin = rotary(like, places, layer_type=kind) if by_kind else rotary(like, places)
        return cos, sin

    return RotaryTable(angles, device=weight.device)
