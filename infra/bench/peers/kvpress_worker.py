"""Runs inside the peer's environment: kvpress' presses on cases given as token ids. Imports nothing of ours.

    python kvpress_worker.py CASES.json OUT.jsonl

CASES: {model, device, threads, seconds, memory_gib: of a GPU, methods, keeps, stop: [ids that end an answer],
contexts: [{name, ids, answer: tokens an answer has at most, 0 for none, cases: [{id, asked, gold}]}]}.
OUT: a line a case, method and keep, appended by whole contexts until `seconds` have passed: {context, tokens,
case, method, keep, exact, nats, right: [bool a token], kept: tokens left in a full layer, kept_bytes: of all full
layers, sliding_bytes, and where answers are wanted said: [ids], greedy}. Hooks are on full-attention layers only:
on this model kvpress would compress the sliding ones too. A press changes the cache alone, after its layer has
attended, so a context is read once and every press is handed the same layer in turn. Presses are asked all
questions in few batches (BATCH_BYTES), the full cache in one of its own. On a GPU no more than `memory_gib` are
taken, and a worker that finds too little halves its batches. Positions go on after the context, and masks of the
question are made here, since transformers' own assume as many keys as positions. Attention is
by plain products (`plain`), for torch's memory-efficient kernel (2.11, pytorch issue 191937) reads the last of
32 n + 1 queries under the mask of the first where heads share a key head by a stride of 0, as transformers lays
them on a GPU: contexts of 2,337, 3,073, 4,129 or 16,385 tokens and questions of 33 were misread by up to 7.5 nats.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
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
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

PRESSES: dict[str, Any] = {
    "kvpress_snapkv": SnapKVPress,
    "kvpress_expected_attention": ExpectedAttentionPress,
    "kvpress_key_difference": KeyDiffPress,
    "kvpress_key_norm": KnormPress,
    "kvpress_window_sinks": StreamingLLMPress,
    "kvpress_tova": TOVAPress,
}
FULL = "kvpress_full"
# pairs of one batch; reading holds them twice
BATCH_BYTES = 1536 << 20

Cell = tuple[str, float]


def plain(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    block: int = 1024,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, `[rows, heads, tokens, width]`, by plain products in blocks of queries.

    `attention_mask` `[rows, 1, tokens, keys]` is True where a query may look. Without one it is causal: keys are
    those of the queries' own tokens, in the window that the layer has.
    """
    rows, heads, tokens, width = query.shape
    few, keys = key.shape[1:3]
    if attention_mask is None and keys != tokens:
        raise ValueError(f"{tokens} queries on {keys} keys without a mask; a context is read in one pass")
    # heads that share a key head become further queries of it: no key is copied
    grouped = query.reshape(rows, few, heads // few, tokens, width)
    found = torch.empty_like(grouped)
    column = torch.arange(keys, device=query.device)
    for start in range(0, tokens, block):
        end, least, most = min(start + block, tokens), 0, keys
        if attention_mask is None:
            most = end
            least = max(0, start - sliding_window + 1) if sliding_window else 0
            hidden = column[least:most] > column[start:end, None]
            if sliding_window:
                hidden |= column[least:most] <= column[start:end, None] - sliding_window
        else:
            hidden = ~attention_mask[:, :, None, start:end]
        scores = grouped[..., start:end, :].flatten(2, 3) @ key[:, :, least:most].transpose(-1, -2)
        scores *= width**-0.5 if scaling is None else scaling
        scores.view(*grouped.shape[:3], end - start, most - least).masked_fill_(hidden, float("-inf"))
        read = scores.softmax(-1) @ value[:, :, least:most]
        found[..., start:end, :] = read.view(*grouped.shape[:3], end - start, width)
    return found.reshape(query.shape).transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def pressed(model: Any, presses: dict[Cell, Any]) -> Any:
    """Gives what each press leaves of each full layer, {cell: {layer: (keys, values)}}, as layers are read."""
    decoder, hooks = model.model, []
    left: dict[Cell, dict[int, Any]] = {cell: {} for cell in presses}

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        whole = layer.keys, layer.values
        for cell, press in presses.items():
            press.forward_hook(module, args, kwargs, output)
            left[cell][module.layer_idx] = layer.keys, layer.values
            layer.keys, layer.values = whole
        return output

    for layer, kind in zip(decoder.layers, model.config.layer_types, strict=True):
        if kind == "full_attention":
            rotary = decoder.rotary_emb

            def turn(x: Any, position_ids: Any, rotary: Any = rotary) -> Any:
                return rotary(x, position_ids, layer_type="full_attention")

            object.__setattr__(layer.self_attn, "rotary_emb", turn)
            hooks.append(layer.self_attn.register_forward_hook(hook, with_kwargs=True))
    try:
        yield left
    finally:
        for each in hooks:
            each.remove()


def copied(cache: Any, left: dict[int, Any]) -> Any:
    """The cache with some layers' pairs replaced; reading into it leaves `cache` as it is."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    for index, (keys, values) in left.items():
        found.layers[index].keys, found.layers[index].values = keys, values
    return found


class Rows:
    """Caches and questions read side by side, a row each; prompts end in one column, what is read follows."""

    def __init__(self, model: Any, caches: list[Any], prompts: list[list[int]], seen: int) -> None:
        self.model, self.seen, self.width = model, seen, max(map(len, prompts))
        device = model.device
        self.pads = torch.tensor([self.width - len(each) for each in prompts], device=device)
        self.prompts = torch.tensor(
            [[0] * (self.width - len(each)) + each for each in prompts], device=device
        )
        # without a window of their own: padding must not push real tokens out of it, masks do what it does
        self.layers: list[Any] = []
        self.held: dict[str, torch.Tensor] = {}
        for kind, *parts in zip(model.config.layer_types, *(cache.layers for cache in caches), strict=True):
            counts = [part.keys.shape[2] for part in parts]
            self.held[kind] = torch.tensor(counts, device=device)
            self.layers.append(
                filled(
                    torch.cat([padded(part.keys, max(counts)) for part in parts]),
                    torch.cat([padded(part.values, max(counts)) for part in parts]),
                )
            )

    def masks(self, tail: int, steps: int) -> dict[str, torch.Tensor]:
        """Where the last `steps` of `tail` tokens after the context may look, `[rows, 1, steps, keys]` by kind."""
        column = torch.arange(tail, device=self.pads.device)
        own = (column >= self.pads[:, None])[:, None] & (column <= column[-steps:, None])
        places = self.seen + column - self.pads[:, None]
        found = {}
        for kind, held in self.held.items():
            most = int(held.max())
            column = torch.arange(most, device=held.device)
            before = (column >= most - held[:, None])[:, None].expand(-1, steps, -1)
            after = own
            if kind == "sliding_attention":
                least = places[:, -steps:, None] - self.model.config.sliding_window
                before, after = before & (self.seen - most + column > least), own & (places[:, None] > least)
            found[kind] = torch.cat((before, after), dim=2)[:, None]
        return found

    def read(
        self, layers: list[Any], ids: torch.Tensor, tail: int, keep: int
    ) -> tuple[torch.Tensor, list[Any]]:
        """Logits of the last `keep` of `ids`, read behind `tail` tokens, and the layers that hold them too."""
        layers = [copy.copy(layer) for layer in layers]
        cache = DynamicCache()
        cache.layers = layers
        at = torch.arange(tail, tail + ids.shape[1], device=ids.device)
        logits = self.model(
            input_ids=ids,
            past_key_values=cache,
            position_ids=(self.seen + at - self.pads[:, None]).clamp(min=0),
            cache_position=self.seen + at,
            attention_mask=self.masks(tail + ids.shape[1], ids.shape[1]),
            logits_to_keep=keep,
        ).logits
        return logits.float(), layers


def padded(pairs: torch.Tensor, length: int) -> torch.Tensor:
    """`[1, heads, tokens, width]` filled up with zeros in front to `length` tokens."""
    return torch.nn.functional.pad(pairs, (0, 0, length - pairs.shape[2], 0))


def filled(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """A layer of a cache without a window that holds these pairs."""
    layer = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.update(keys, values)
    return layer


@torch.no_grad()
def ask(
    model: Any, caches: list[Any], seen: int, cases: list[dict[str, Any]], answer: int, stop: set[int]
) -> list[list[dict[str, Any]]]:
    """Teacher-forced choices and nats of the gold answers, and greedy answers of at most `answer` tokens.

    A list a cache with a dict a case; `caches` are not changed.
    """
    rows = [(cache, case) for cache in caches for case in cases]
    batch = Rows(model, [cache for cache, _ in rows], [case["asked"] for _, case in rows], seen)
    first, layers = batch.read(batch.layers, batch.prompts, 0, 1)
    batch.layers = []  # what was read holds the same pairs again
    length = max(len(case["gold"]) for case in cases)
    golds = torch.tensor(
        [case["gold"] + [0] * (length - len(case["gold"])) for _, case in rows], device=first.device
    )
    logits = first
    if length > 1:
        logits = torch.cat((first, batch.read(layers, golds[:, :-1], batch.width, length - 1)[0]), dim=1)
    right = (logits.argmax(-1) == golds).tolist()
    nats = -logits.log_softmax(-1).gather(2, golds[..., None])[..., 0]
    found = []
    for at, (_, case) in enumerate(rows):
        count = len(case["gold"])
        hits = right[at][:count]
        found.append(
            {
                "case": case["id"],
                "exact": float(all(hits)),
                "nats": float(nats[at, :count].sum()),
                "right": hits,
            }
        )
    if answer:
        for each, said in zip(found, greedy(batch, layers, first[:, 0], answer, stop), strict=True):
            each["said"] = said
    return [found[at : at + len(cases)] for at in range(0, len(found), len(cases))]


def greedy(
    batch: Rows, layers: list[Any], logits: torch.Tensor, most: int, stop: set[int]
) -> list[list[int]]:
    """The likeliest tokens of every row after its prompt, up to a token of `stop`."""
    said: list[list[int]] = [[] for _ in range(len(logits))]
    still = set(range(len(said)))
    for step in range(most):
        chosen = logits.argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            if row in still and token in stop:
                still.discard(row)
            elif row in still:
                said[row].append(token)
        if not still or step + 1 == most:
            break
        logits, layers = batch.read(layers, chosen[:, None], batch.width + step, 1)
        logits = logits[:, 0]
    return said


def ends(model: Any) -> set[int]:
    """The ids that the model's own configuration ends a text with."""
    found: set[Any] = set()
    for owner in (model.config, model.generation_config):
        given = getattr(owner, "eos_token_id", None)
        found |= set(given) if isinstance(given, list | tuple) else {given}
    return found - {None}


def held_bytes(model: Any, cache: Any, kind: str) -> int:
    """Bytes of keys and values in the layers of a kind."""
    return sum(
        layer.keys.nbytes + layer.values.nbytes
        for layer, of in zip(cache.layers, model.config.layer_types, strict=True)
        if of == kind
    )


def bound(device: str, gib: float) -> None:
    """Lets this process hold at most `gib` GiB of a GPU; "cuda" is the current one."""
    index = torch.device(device).index
    if index is None:  # which torch refuses to bound
        index = torch.cuda.current_device()
    whole = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / whole), index)


@torch.no_grad()
def main(source: Path, target: Path) -> None:
    """See the module's text."""
    given = json.loads(source.read_text())
    until = time.monotonic() + given["seconds"]
    torch.set_num_threads(given["threads"])
    AttentionInterface.register("plain_products", plain)
    model: Any = AutoModelForCausalLM.from_pretrained(
        given["model"], dtype=torch.float32, attn_implementation="plain_products"
    )
    if given["device"].startswith("cuda"):
        bound(given["device"], given["memory_gib"])
    model.eval().to(given["device"])
    stop = ends(model) | set(given.get("stop", ()))
    presses = {
        (method, keep): PRESSES[method](compression_ratio=1 - keep)
        for method in given["methods"]
        for keep in given["keeps"]
        if method != FULL
    }
    most = BATCH_BYTES
    for context in given["contexts"]:
        if time.monotonic() > until:
            break
        while True:
            try:
                lines = judged(model, context, presses, FULL in given["methods"], stop, most)
                break
            except torch.OutOfMemoryError:
                if most < BATCH_BYTES >> 4:
                    raise
            most //= 2
            torch.cuda.empty_cache()
            sys.stderr.write(f"the GPU is full: batches of {most >> 20} MiB from now on\n")
        with target.open("a") as out:
            out.write("".join(json.dumps(line) + "\n" for line in lines))


def judged(
    model: Any, context: dict[str, Any], presses: dict[Cell, Any], full: bool, stop: set[int], most: int
) -> list[dict[str, Any]]:
    """The lines of a context."""
    ids = torch.tensor([context["ids"]], device=model.device)
    cache = DynamicCache(config=model.config)
    with pressed(model, presses) as left:
        model.model(input_ids=ids, past_key_values=cache)
    caches = {cell: copied(cache, pairs) for cell, pairs in left.items()}
    if full:
        caches[FULL, 1.0] = copied(cache, {})
    first = model.config.layer_types.index("full_attention")
    found = []
    for cells in batches(model, caches, len(context["cases"]), most):
        held = [caches[cell] for cell in cells]
        told = ask(model, held, ids.shape[1], context["cases"], context.get("answer", 0), stop)
        for (method, keep), cache, answers in zip(cells, held, told, strict=True):
            about = {
                "context": context["name"],
                "tokens": len(context["ids"]),
                "method": method,
                "keep": keep,
                "kept": cache.layers[first].keys.shape[2],
                "kept_bytes": held_bytes(model, cache, "full_attention"),
                "sliding_bytes": held_bytes(model, cache, "sliding_attention"),
            }
            found += [about | answer for answer in answers]
    return found


def batches(model: Any, caches: dict[Cell, Any], cases: int, most: int) -> list[list[Cell]]:
    """The cells in groups of at most `most` bytes, the longest first: each row is as long as the group's longest.

    The full cache is alone, and so is a cell that exceeds `most` by itself.
    """
    bytes_of = {
        cell: held_bytes(model, cache, "full_attention") + held_bytes(model, cache, "sliding_attention")
        for cell, cache in caches.items()
    }
    found: list[list[Cell]] = []
    for cell in sorted(caches, key=lambda cell: (cell[0] != FULL, -bytes_of[cell])):
        last = found[-1] if found else []
        if last and last[0][0] != FULL and (len(last) + 1) * cases * bytes_of[last[0]] <= most:
            last.append(cell)
        else:
            found.append([cell])
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
