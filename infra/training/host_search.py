"""Searching on a GPU host: vectors by the carried MiniLM, nearest passages, rankings fused, tokens counted."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class Encoder:
    """Unit vectors of texts by the carried MiniLM, mean pooled; float16. [N, 384]"""

    def __init__(self, folder: Path, device: str) -> None:
        from models.retriever.pair_reader import from_minilm

        self._reader, self._device = from_minilm(folder, device), device

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        on_gpu = self._device.startswith("cuda")
        ids = [each[:254] for each in self._reader.tokenize(texts)]
        out = np.zeros((len(texts), self._reader.model.sizes["hidden_size"]), np.float16)
        order = np.argsort([len(each) for each in ids], kind="stable")
        size = 2048 if on_gpu else 32
        bert = self._reader.model.bert
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch, mask = self._padded([ids[at] for at in chosen])
            with torch.autocast("cuda" if on_gpu else "cpu", torch.float16, enabled=on_gpu):
                hidden = bert(input_ids=batch, attention_mask=mask).last_hidden_state.float()
            weight = mask[..., None].float()
            mean = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
            out[chosen] = mean.half().cpu().numpy()
        return out

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = 2 + max(map(len, ids))
        first, last = self._reader.ends
        batch = np.zeros((len(ids), width), np.int64)
        mask = np.zeros((len(ids), width), np.int64)
        for at, each in enumerate(ids):
            batch[at, : len(each) + 2] = [first, *each, last]
            mask[at, : len(each) + 2] = 1
        return torch.from_numpy(batch).to(self._device), torch.from_numpy(mask).to(self._device)


def nearest(
    asked: npt.NDArray[np.float16], passages: npt.NDArray[np.float16], most: int, device: str
) -> npt.NDArray[np.int64]:
    """The places of the nearest passages of each question, best first. [N, most]"""
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    whole = torch.from_numpy(passages).to(device, dtype)
    found = [
        (torch.from_numpy(asked[at : at + 256]).to(device, dtype) @ whole.T)
        .topk(min(most, len(whole)), dim=1)
        .indices.cpu()
        for at in range(0, len(asked), 256)
    ]
    return np.asarray(torch.cat(found).numpy(), np.int64)


def fused(rankings: Sequence[Sequence[str]], most: int) -> list[str]:
    """The best ids by reciprocal rank fusion, as `HybridPool` has it."""
    score: dict[str, float] = {}
    for ranking in rankings:
        for at, name in enumerate(ranking):
            score[name] = score.get(name, 0.0) + 1 / (60 + at)
    return sorted(score, key=lambda name: -score[name])[:most]


def counter(carried: Path) -> Any:
    """Counts tokens as the carried tokenizer of the reader makes them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(lzma.decompress((carried / "tokenizer.json.xz").read_bytes()).decode())
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in known:
            known[text] = len(tokenizer.encode(text, add_special_tokens=False).ids)
        return known[text]

    return count
