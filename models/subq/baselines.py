"""The methods that a sub-quadratic backbone is compared with, as configurations of the same model."""

from __future__ import annotations

from dataclasses import replace

from models.subq.config import SubqConfig

BASELINES = ("subq", "subq-lean", "no-retrieval", "transformer", "linear-transformer", "mamba-2", "gca")
_MIXERS = {
    "no-retrieval": "sliding",
    "transformer": "full",
    "linear-transformer": "gated_linear",
    "mamba-2": "state_space",
}
COMPARED = ("gca", *_MIXERS)
"""The baselines that `method_of` tells by their shape: what they hold is no compressed cache of another model."""


def baseline(name: str, config: SubqConfig) -> SubqConfig:
    """The compared method of that name, with about as many parameters as `config`'s model.

    no-retrieval: the same windows, nothing chosen. transformer: full attention. linear-transformer: gated linear
    attention. mamba-2: state space (as many blocks, the feed-forward networks kept). gca: untied landmark and query
    (train it without contrastive loss, forcing and bank: see docs/subq.md). subq-lean: read by a lean encoder
    and the windows' own projections, half as many chunks, each with the one that follows it (what comes back goes
    on as it did, arXiv 2112.04426); what that saves stays with the blocks.
    """
    if name == "subq":
        return config
    if name == "gca":
        return replace(config, tied=False)
    if name == "subq-lean":
        lean = replace(
            config, encoder="lean", shared_reader=True, lookahead=0, lookbehind=0, neighbours=True,
            top_k=max(1, config.top_k // 2),
        )  # fmt: skip
        return widened(lean, config)
    if name not in _MIXERS:
        raise ValueError(f"baseline: given {name!r}; allowed: {', '.join(BASELINES)}")
    plain = replace(
        config,
        lower_blocks=config.lower_blocks + config.upper_blocks,
        upper_blocks=0,
        retrieval="none",
        lower_mixers=(_MIXERS[name],),
    )
    return widened(plain, config)


def method_of(config: SubqConfig) -> str:
    """Which of COMPARED a model of this shape is; `subq` for any other."""
    if config.retrieval == "none":
        mixers = {*config.lower_mixers, *(config.upper_mixers if config.upper_blocks else ())}
        return next((name for name, mixer in _MIXERS.items() if mixers == {mixer}), "subq")
    return "subq" if config.tied else "gca"


def widened(config: SubqConfig, like: SubqConfig) -> SubqConfig:
    """`config` with feed-forward networks so much wider, in whole eights, that it is as large as `like`."""
    blocks = config.lower_blocks + config.upper_blocks
    missing = count(like) - count(config)
    return replace(
        config, feed_forward=config.feed_forward + round(missing / (3 * config.width * blocks) / 8) * 8
    )


def count(config: SubqConfig) -> int:
    """Parameters of a model of this shape."""
    import torch

    from models.subq.model import SubqModel

    # shapes alone: weights would be drawn only to be counted
    with torch.device("meta"):
        return SubqModel(config).num_parameters()[0]


CHOICES = (
    "subq", "subq-routing-first", "subq-linear", "subq-log-k", "subq-state-space", "subq-mixed", "subq-neighbours",
    "subq-shared-reader", "subq-lean-encoder", "subq-lean", "subq-end-to-end", "subq-one-weight", "subq-token",
)  # fmt: skip
"""Each the first with one thing changed, but the last: it is `subq-one-weight` with one thing changed."""


def choice(name: str, config: SubqConfig) -> SubqConfig:
    """`config` with the change that the name says, of about as many parameters.

    linear, state-space: the mixer of all blocks; mixed: every second block a window, in the lower and in the upper
    half gated linear before it. log-k: round(log2(past chunks)) chunks, at most twice top_k. neighbours: half as
    many chunks, each with the next. shared-reader, lean-encoder: the other two parts of subq-lean. one-weight: the
    same weight of a chunk for all heads (no rerank); token: that, and every token asks. subq, routing-first and
    end-to-end are the same model: what differs is how it is trained (infra.training.subq_choices).
    """
    changed = {
        "subq": {}, "subq-routing-first": {}, "subq-end-to-end": {},
        "subq-linear": {"lower_mixers": ("gated_linear",), "upper_mixers": ("gated_linear",)},
        "subq-state-space": {"lower_mixers": ("state_space",), "upper_mixers": ("state_space",)},
        "subq-mixed": {
            "lower_mixers": ("gated_linear", "sliding"), "upper_mixers": ("gated_linear", "sliding"),
        },
        "subq-log-k": {"top_k": 2 * config.top_k, "top_k_log": 1.0},
        "subq-neighbours": {"neighbours": True, "top_k": max(1, config.top_k // 2)},
        "subq-shared-reader": {"shared_reader": True},
        "subq-lean-encoder": {"encoder": "lean", "lookahead": 0, "lookbehind": 0},
        "subq-one-weight": {"rerank": False, "kernel": "auto"},
        "subq-token": {"rerank": False, "kernel": "auto", "retrieval": "token"},
    }  # fmt: skip
    if name == "subq-lean":
        return baseline(name, config)
    if name not in changed:
        raise ValueError(f"choice: given {name!r}; allowed: {', '.join(CHOICES)}")
    other = replace(config, **changed[name])  # type: ignore[arg-type]
    return widened(other, config) if other != config else config
