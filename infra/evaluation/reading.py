"""How a cell's prompts are read and what that costs, by a transformers decoder or a sub-quadratic model."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from infra.evaluation.readers import hf_name, kind_of, load_subq
from pipeline.session.prompts import STOP_TEXTS, giving_up_token

if TYPE_CHECKING:
    from models.hf import HfBackbone
    from models.subq import SubqBackbone

ANSWER_TOKENS = 24
OnProgress = Callable[[int], None]
Said = list[tuple[int, ...]]


class Reader(Protocol):
    """Answers prompts and says what reading cost."""

    @property
    def backbone(self) -> Any:
        """Encodes, decodes, and has an identity."""

    def answers(
        self, prompts: list[list[int]], on_progress: OnProgress | None
    ) -> tuple[Said, dict[int, tuple[int, ...]]]:
        """The answers' ids, and what is said by a reader that must answer where it gave up."""

    def cost(
        self,
        prompts: Sequence[Sequence[int]],
        read_tokens: Sequence[int],
        said: Said,
        chosen_s: float,
        read_s: float,
    ) -> dict[str, Any]:
        """Means a question; FLOPs are two a weight and token."""


def load_reader(model: str, adapter: str | None, device: str) -> Reader:
    """The reader that `--model` and `--adapter` mean."""
    if kind_of(model) == "subq":
        return SubqReader(load_subq(model, device))
    from models.hf import HfBackbone, HfConfig

    return HfReader(HfBackbone.load(HfConfig(model=hf_name(model), adapter=adapter, device=device)))


class HfReader:
    """A transformers decoder over plain prompts, in batches."""

    def __init__(self, backbone: HfBackbone) -> None:
        self.backbone = backbone

    def answers(
        self, prompts: list[list[int]], on_progress: OnProgress | None
    ) -> tuple[Said, dict[int, tuple[int, ...]]]:
        """See Reader.answers. Forced answers only where giving up begins with a token of its own."""
        from models.reader_decoding import greedy_answers

        backbone = self.backbone
        give_up = giving_up_token(backbone.encode)
        on_gpu = backbone.device.type == "cuda"
        options: dict[str, Any] = {
            "stop_id": backbone.encode("\n")[0],
            "give_up_id": give_up,
            "device": str(backbone.device),
            "tokens_per_batch": 65536 if on_gpu else 2048,
        }
        found = greedy_answers(backbone.model, prompts, on_batch=on_progress, **options)
        said = [answer.ids for answer in found]
        gave_up = [at for at, ids in enumerate(said) if give_up is not None and ids[:1] == (give_up,)]
        again = greedy_answers(backbone.model, [prompts[at] for at in gave_up], may_give_up=False, **options)
        return said, {at: answer.ids for at, answer in zip(gave_up, again, strict=True)}

    def cost(
        self,
        prompts: Sequence[Sequence[int]],
        read_tokens: Sequence[int],
        said: Said,
        chosen_s: float,
        read_s: float,
    ) -> dict[str, Any]:
        """See Reader.cost; bytes are those of the plain cache of the prompt."""
        config = self.backbone.model.config.get_text_config(decoder=True)
        prefill = float(np.mean([len(prompt) for prompt in prompts]))
        pair = 2 * config.num_key_value_heads * config.head_dim * self.backbone.dtype.itemsize
        window = getattr(config, "sliding_window", None) or 1 << 62
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        kept = [prefill if kind == "full_attention" else min(prefill, window) for kind in kinds]
        return _cost(
            self.backbone.model, self.backbone.device.type, pair * sum(kept), prompts, read_tokens, said,
            chosen_s, read_s,
        )  # fmt: skip


class SubqReader:
    """A sub-quadratic model: each prompt is a stream of its own."""

    def __init__(self, backbone: SubqBackbone) -> None:
        self.backbone = backbone

    def answers(
        self, prompts: list[list[int]], on_progress: OnProgress | None
    ) -> tuple[Said, dict[int, tuple[int, ...]]]:
        """See Reader.answers; nothing is forced: the model has no token for giving up."""
        said: Said = []
        for prompt in prompts:
            ids = self.backbone.generate(prompt, max_new_tokens=ANSWER_TOKENS, stop_texts=STOP_TEXTS)
            said.append(tuple(ids))
            if on_progress is not None:
                on_progress(len(said))
        return said, {}

    def cost(
        self,
        prompts: Sequence[Sequence[int]],
        read_tokens: Sequence[int],
        said: Said,
        chosen_s: float,
        read_s: float,
    ) -> dict[str, Any]:
        """See Reader.cost; bytes are those of the stream's chunks."""
        model = self.backbone.model
        config = model.config
        itemsize = model.embedding.weight.dtype.itemsize
        chunks = float(np.mean([len(prompt) // config.chunk for prompt in prompts]))
        of_chunk = 2 * config.chunk * config.kv_heads * config.head_dim * itemsize + 2 * config.landmark_dim
        return _cost(
            model, model.device.type, chunks * of_chunk, prompts, read_tokens, said, chosen_s, read_s
        )


def _cost(
    model: Any,
    device: str,
    kv_bytes: float,
    prompts: Sequence[Sequence[int]],
    read_tokens: Sequence[int],
    said: Said,
    chosen_s: float,
    read_s: float,
) -> dict[str, Any]:
    import torch

    inner = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    tokens = sum(map(len, prompts)) + sum(len(ids) + 1 for ids in said)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "tokens_read": round(float(np.mean(read_tokens)), 1),
        "prefill_tokens": round(float(np.mean([len(prompt) for prompt in prompts])), 1),
        "kv_bytes": round(kv_bytes),
        "ms_per_token": round(1000 * read_s / tokens, 3),
        "queries_per_s": round(len(prompts) / (chosen_s + read_s), 3),
        "peak_bytes": int(peak),
        "flops": round(2.0 * inner * tokens / len(prompts)),
    }
