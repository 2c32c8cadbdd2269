"""The methods that a sub-quadratic backbone is compared with, as configurations of the same model."""

from __future__ import annotations

from dataclasses import replace

from models.subq.config import SubqConfig

BASELINES = ("subq", "no-retrieval", "transformer", "linear-transformer", "mamba-2", "gca")


def baseline(name: str, config: SubqConfig) -> SubqConfig:
    """The compared method of that name, with about as many parameters as `config`'s model.

    no-retrieval: the same windows, nothing chosen. transformer: full attention. linear-transformer: gated linear
    attention. mamba-2: state space (as many blocks, the feed-forward networks kept). gca: untied landmark and query
    (train it without contrastive loss, forcing and bank: see docs/subq.md).
    """
    if name == "subq":
        return config
    if name == "gca":
        return replace(config, tied=False)
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
    # what retrieval and the chunk encoder cost goes into wider feed-forward networks, whole eights of them
    missing = count(config) - count(plain)
    wider = plain.feed_forward + round(missing / (3 * plain.width * plain.lower_blocks) / 8) * 8
    return replace(plain, feed_forward=wider)


def count(config: SubqConfig) -> int:
    """Parameters of a model of this shape."""
    from models.subq.model import SubqModel

    # built with one id, the rest of the embedding is added: it is the only part that depends on the vocabulary
    return (
        SubqModel(replace(config, vocabulary=1)).num_parameters()[0] + (config.vocabulary - 1) * config.width
    )
