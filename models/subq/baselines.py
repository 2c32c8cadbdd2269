"""The methods that a sub-quadratic backbone is compared with, as configurations of the same model."""

from __future__ import annotations

from dataclasses import replace

from models.subq.config import SubqConfig

BASELINES = ("subq", "subq-lean", "no-retrieval", "transformer", "linear-transformer", "mamba-2", "gca")


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
        return _widened(lean, config)
    mixers = {
        "no-retrieval": "sliding",
        "transformer": "full",
        "linear-transformer": "gated_linear",
        "mamba-2": "state_space",
    }
    if name not in mixers:
        raise ValueError(f"baseline: given {name!r}; allowed: {', '.join(BASELINES)}")
    plain = replace(
        config,
        lower_blocks=config.lower_blocks + config.upper_blocks,
        upper_blocks=0,
        retrieval="none",
        lower_mixers=(mixers[name],),
    )
    return _widened(plain, config)


def _widened(config: SubqConfig, like: SubqConfig) -> SubqConfig:
    """With feed-forward networks so much wider, in whole eights, that it has as many parameters as `like`."""
    blocks = config.lower_blocks + config.upper_blocks
    missing = count(like) - count(config)
    return replace(
        config, feed_forward=config.feed_forward + round(missing / (3 * config.width * blocks) / 8) * 8
    )


def count(config: SubqConfig) -> int:
    """Parameters of a model of this shape."""
    from models.subq.model import SubqModel

    # built with one id, the rest of the embedding is added: it is the only part that depends on the vocabulary
    return (
        SubqModel(replace(config, vocabulary=1)).num_parameters()[0] + (config.vocabulary - 1) * config.width
    )
