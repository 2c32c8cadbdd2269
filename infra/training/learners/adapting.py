"""What the learners that adapt a decoder share: trained weights by name, and how the adapted model is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.digests import check_beside, put_beside
from models.hf import cut
from models.hf.cut import CutTokenizer, Encoded
from models.reader_training import ReaderTrainConfig, learning_rate, save_adapter

METHODS = ("lora", "full")


def named_state(
    names: Sequence[str], parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The trained weights alone, and their optimizer."""
    weights = {name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)}
    return {"weights": weights, "optimizer": optimizer.state_dict()}


@torch.no_grad()
def load_named(
    state: dict[str, Any],
    names: Sequence[str],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put back what `named_state` gave."""
    for name, parameter in zip(names, parameters, strict=True):
        parameter.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])


def scheduled_step(
    optimizer: torch.optim.Optimizer, schedule: ReaderTrainConfig, step: int, progress: float, steps: int
) -> dict[str, float]:
    """One step at the schedule's rate for what is done of the run, in updates or in time; the rate."""
    rate = learning_rate(schedule, max(step, int(progress * steps)), steps)
    for settings in optimizer.param_groups:
        settings["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"lr": rate}


def known_ids(tokenizer: Any, text: str) -> list[int]:
    """A text's ids; tokens that a cut vocabulary lacks are left out, where a backbone would refuse the text."""
    if not isinstance(tokenizer, CutTokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    found = tokenizer._whole.encode(text, add_special_tokens=False).ids
    return [tokenizer._new[i] for i in found if i in tokenizer._new]


class ForgivingTokenizer(CutTokenizer):
    """A cut tokenizer that leaves lacking tokens out, where a session's refuses the text; `lost` counts them."""

    lost = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        """The ids of the tokens that there are."""
        old = self._whole.encode(text, add_special_tokens=add_special_tokens).ids
        kept = [self._new[i] for i in old if i in self._new]
        ForgivingTokenizer.lost += len(old) - len(kept)
        return Encoded(kept)


@contextmanager
def forgiving_tokenizers() -> Iterator[None]:
    """Inside, decoders with a cut vocabulary get a ForgivingTokenizer: for measuring, not for sessions."""
    strict = cut.cut_tokenizer

    def forgiving(folder: Path, whole: Any) -> CutTokenizer:
        return ForgivingTokenizer(whole, np.load(folder / cut.VOCABULARY).tolist())

    cut.cut_tokenizer = forgiving
    try:
        yield
    finally:
        cut.cut_tokenizer = strict


def write_adapted(model: Any, tokenizer: Any, method: str, folder: Path) -> None:
    """The adapter as peft reads it, or the whole model as `transformers` does; in bf16."""
    if method == "lora":
        save_adapter(model, folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's own; ours follows
        return
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    model.save_pretrained(str(folder), state_dict=state)
    tokenizer.save(str(folder / "tokenizer.json"))
    put_beside(folder, (path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".json")))


def go_on(model: nn.Module, adapter: Path) -> None:
    """Put the weights of a saved adapter into the model's own; ValueError where they do not fit."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise ValueError(f"begin_with: given {adapter}; allowed: a folder with adapter_model.safetensors")
    check_beside(adapter)
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    try:
        result: Any = set_peft_model_state_dict(model, weights)
    except RuntimeError as error:
        raise ValueError(f"begin_with: {adapter} does not fit: {str(error).splitlines()[-1]}") from None
    if result.unexpected_keys:
        raise ValueError(
            f"begin_with: {adapter} holds weights of another model: {result.unexpected_keys[:2]}"
        )
