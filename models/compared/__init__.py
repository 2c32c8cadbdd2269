"""Ways to compress a prefilled context, one base class, one file each; found by name without importing torch.

`method("snapkv", window=32)` makes one. Add a method of your own by one entry here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.compared.base import Method

METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("full", "Full", {}),
    "full_cache": ("full", "Full", {}),
    "truncation": ("window", "Truncation", {}),
    "window_sinks": ("window", "WindowSinks", {}),
    "snapkv": ("snapkv", "SnapKV", {}),
    "expected_attention": ("expected_attention", "ExpectedAttention", {}),
    "key_difference": ("keys", "KeyDifference", {}),
    "key_norm": ("keys", "KeyNorm", {}),
    "h2o": ("attended", "H2O", {}),
    "pyramidkv": ("snapkv", "PyramidKV", {}),
    "razor": ("razor", "Razor", {}),
    "squeeze": ("squeeze", "Squeeze", {}),
    "kv_compress": ("kv_compress", "KVCompress", {}),
    "shared_attention": ("shared_attention", "SharedAttention", {}),
    "question_bank": ("attended", "QuestionBank", {}),
    "ranker": ("learned", "LearnedRanker", {}),
    "ours_latents": ("ours", "Ours", {"raw_share": 0.5}),
    "ours_weighted": ("ours", "Ours", {"raw_share": 0.5, "compressor": "weighted_svd"}),
    "ours_projection": ("ours", "Ours", {"raw_share": 0.5, "compressor": "projection"}),
    "ours_autoencoder": ("ours", "Ours", {"raw_share": 0.5, "compressor": "autoencoder"}),
    "ours_question_bank": ("ours", "Ours", {"scorer": "question_bank"}),
    "ours_ranker": ("ours", "Ours", {"scorer": "ranker"}),
    "ours_brought_back": ("brought_back", "BroughtBack", {}),
    "ours_latents_streaming": ("ours", "Ours", {"raw_share": 0.5, "streaming": True}),
    "ours_question_bank_streaming": ("ours", "Ours", {"scorer": "question_bank", "streaming": True}),
    "ours_ranker_streaming": ("ours", "Ours", {"scorer": "ranker", "streaming": True}),
}
"""Name: module under models/compared, class, settings other than its defaults."""


def method(name: str, **settings: Any) -> Method:
    """The method of this name; raises ValueError for a name or a setting that there is not."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; allowed: {', '.join(METHODS)}")
    module, cls, defaults = METHODS[name]
    made = getattr(import_module(f"models.compared.{module}"), cls)
    try:
        found: Method = made(**{**defaults, **settings})
    except TypeError as error:
        raise ValueError(f"method {name}: {error}") from None
    return found
