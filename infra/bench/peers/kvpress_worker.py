"""Runs inside the peer's environment: kvpress' presses on cases given as token ids. Imports nothing of ours.

    python kvpress_worker.py CASES.json OUT.json

CASES: {model, threads, methods, keeps, contexts: [{ids, cases: [{id, asked, gold}]}]}. OUT: a row a case, method
and keep: {case, method, keep, exact, nats, right: [bool a token], kept: tokens left in a full layer}. Hooks are on
full-attention layers only: on this model kvpress would compress the sliding ones too. Positions go on after the
context, and masks of the question are made here, since transformers' own assume as many keys as positions.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES: dict[str, Any] = {
    "kvpress_snapkv": SnapKVPress,
    "kvpress_expected_attention": ExpectedAttentionPress,
    "kvpress_key_difference": KeyDiffPress,
    "kvpress_key_norm": KnormPress,
    "kvpress_window_sinks": StreamingLLMPress,
    "kvpress_tova": TOVAPress,
}
FULL = "kvpress_full"


@contextlib.contextmanager
def pressed(model: Any, press: Any) -> Any:
    """`press` hooked on the full-attention layers of `model`."""
    decoder, hooks = model.model, []
    for layer, kind in zip(decoder.layers, model.config.layer_types, strict=True):
        if kind == "full_attention" and press is not None:
            rotary = decoder.rotary_emb

            def turn(x: Any, position_ids: Any, rotary: Any = rotary) -> Any:
                return rotary(x, position_ids, layer_type="full_attention")

            object.__setattr__(layer.self_attn, "rotary_emb", turn)
            hooks.append(layer.self_attn.register_forward_hook(press.forward_hook, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def masks(model: Any, cache: Any, seen: int, steps: int) -> dict[str, torch.Tensor]:
    """Where the `steps` tokens after `seen` may look, by kind of layer, `[1, 1, steps, keys]`."""
    kinds = model.config.layer_types
    at = torch.arange(seen, seen + steps)[:, None]
    held = {kind: cache.layers[kinds.index(kind)].keys.shape[2] for kind in set(kinds)}
    own = torch.arange(seen, seen + steps) <= at
    full = torch.cat((torch.ones(steps, held["full_attention"], dtype=torch.bool), own), dim=1)
    places = torch.arange(seen - held["sliding_attention"], seen + steps)
    sliding = (places <= at) & (places > at - model.config.sliding_window)
    return {"full_attention": full[None, None], "sliding_attention": sliding[None, None]}


@torch.no_grad()
def ask(model: Any, cache: Any, seen: int, case: dict[str, Any]) -> dict[str, Any]:
    """Teacher-forced choices and nats of one gold answer; the cache is not changed."""
    tokens = [*case["asked"], *case["gold"][:-1]]
    logits = (
        model(
            input_ids=torch.tensor([tokens]),
            past_key_values=copy.deepcopy(cache),
            position_ids=torch.arange(seen, seen + len(tokens))[None],
            cache_position=torch.arange(seen, seen + len(tokens)),
            attention_mask=masks(model, cache, seen, len(tokens)),
            logits_to_keep=len(case["gold"]),
        )
        .logits[0]
        .float()
    )
    gold = torch.tensor(case["gold"])
    right = (logits.argmax(-1) == gold).tolist()
    nats = -float(logits.log_softmax(-1).gather(1, gold[:, None]).sum())
    return {"case": case["id"], "exact": float(all(right)), "nats": nats, "right": right}


@torch.no_grad()
def main(source: Path, target: Path) -> None:
    """See the module's text."""
    given = json.loads(source.read_text())
    torch.set_num_threads(given["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    model.eval()
    first = model.config.layer_types.index("full_attention")
    rows = []
    for context in given["contexts"]:
        ids = torch.tensor([context["ids"]])
        for method in given["methods"]:
            for keep in [1.0] if method == FULL else given["keeps"]:
                press = None if method == FULL else PRESSES[method](compression_ratio=1 - keep)
                cache = DynamicCache(config=model.config)
                with pressed(model, press):
                    model.model(input_ids=ids, past_key_values=cache)
                kept = cache.layers[first].keys.shape[2]
                for case in context["cases"]:
                    answer = ask(model, cache, ids.shape[1], case)
                    rows.append({"method": method, "keep": keep, "kept": kept, **answer})
                target.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
