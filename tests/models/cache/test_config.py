"""Budgets that cannot work are refused with both numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from models.cache import CacheConfig
from tests.models import tiny


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ring": 0}, "cache.ring is 0"),
        ({"ring": 2, "sinks": 4}, "cache.ring is 2, less than read_block 128 \\+ evict_block 128 = 256"),
        ({"sinks": 200}, "read_block is 128 and cache.sinks 200"),
        ({"rank": 200}, "cache.rank is 200, more than the 128 tokens"),
        ({"value_rank": 129}, "cache.value_rank is 129, more than the 128 tokens"),
        ({"rank": 120, "heavy": 16}, "cache.rank is 120, more than the 112 tokens"),
        ({"heavy": 8, "heavy_per_block": 16}, "cache.heavy is 8, less than heavy_per_block 16"),
        ({"heavy": 256, "heavy_per_block": 128}, "heavy_per_block is 128, not less than evict_block 128"),
        (
            {"compressor": "zip"},
            "compressor is 'zip'; allowed: svd, weighted_svd, projection, autoencoder, drop",
        ),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"latent_blocks": -1}, "latent_blocks is -1"),
        ({"sinks": True}, "sinks is True"),
        ({"per_layer": {"first": {}}}, "per_layer names layer 'first'"),
        (
            {"per_layer": {"5": {"read_block": 9}}},
            "per_layer sets read_block of layer 5; allowed: compressor,",
        ),
        ({"per_layer": {"5": {"ring": 9}}}, "per_layer, layer 5: cache.ring is 9, less than"),
    ],
)
def test_impossible_budgets_name_both_sides(changes: dict[str, Any], says: str) -> None:
    """The error holds the field, the value given and what it collides with."""
    with pytest.raises(ValueError, match=says):
        CacheConfig(**changes)


def test_rank_above_the_head_width_is_refused_when_the_cache_is_made() -> None:
    """The configuration alone cannot know the model's width."""
    with pytest.raises(ValueError, match="rank is 20, more than the model's head width 16"):
        tiny.backbone().new_cache(tiny.budgets(rank=20, evict_block=32, ring=40))


def test_budgets_of_a_layer_that_is_not_full_are_refused() -> None:
    """A sliding layer has its own window and no budget."""
    with pytest.raises(
        ValueError, match=r"per_layer names layer 2; the full-attention layers of tiny.* are 1, 3"
    ):
        tiny.backbone().new_cache(tiny.budgets(per_layer={"2": {"ring": 40}}))


def test_every_field_has_a_help_text() -> None:
    """`dysra config` prints the meaning of each budget."""
    assert all(field.metadata["help"] for field in dataclasses.fields(CacheConfig))


def test_configuration_loads_without_torch() -> None:
    """`dysra config` must not pay for the models."""
    import subprocess
    import sys

    code = "import sys, models.cache, models.hf; models.hf.HfConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
