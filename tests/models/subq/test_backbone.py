"""The text interface of a sub-quadratic model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from models.backbone import Backbone, Reluctance, Sampling
from models.subq import SubqBackbone
from models.subq.backbone import SubqCache, _shape
from models.subq.checkpoint import save_checkpoint
from models.subq.config import SubqConfig
from models.subq.memory import MemoryConfig
from models.subq.tokenizer import SubqTokenizer
from tests.models.subq.small import small_model

TEXT = "The clerk wrote down 40213 as the code of Alder Birch. Rain is expected, ferries stay in port. " * 8
TOKENIZER = SubqTokenizer.train([TEXT], 300)


def _backbone(**changes: object) -> SubqBackbone:
    return SubqBackbone(small_model(vocabulary=300, **changes), TOKENIZER)


def test_is_a_backbone() -> None:
    """Whatever works with a Backbone works with this one."""
    assert isinstance(_backbone(), Backbone)


@pytest.mark.parametrize(
    "changes", [{}, {"lower_mixers": ("gated_linear", "sliding"), "index": "tree"}, {"copies": True}]
)
def test_answer_is_greedy_and_leaves_the_cache_as_it_was(changes: dict[str, object]) -> None:
    """Each token is the likeliest after those before, by the score; the cache's bytes stay as they were."""
    backbone = _backbone(**changes)
    cache = backbone.new_cache()
    backbone.read(backbone.bos + backbone.encode(TEXT), cache)
    before = cache.to_bytes()
    prompt = backbone.encode("What is the code?")
    answer = list(backbone.generate(prompt, cache, 6))
    assert cache.to_bytes() == before
    assert list(backbone.generate(prompt, cache, 6)) == answer
    best = backbone.score(prompt, answer[:1], cache)
    for other in range(0, 300, 23):
        assert backbone.score(prompt, [other], cache) <= best + 1e-5


def test_reading_may_be_split_anywhere() -> None:
    """The same ids in other pieces give the same continuation."""
    backbone = _backbone()
    ids = backbone.encode(TEXT)
    whole, parts = backbone.new_cache(), backbone.new_cache()
    backbone.read(ids, whole)
    for at in range(0, len(ids), 37):
        backbone.read(ids[at : at + 37], parts)
    assert whole.tokens_seen == parts.tokens_seen == len(ids)
    prompt = backbone.encode("Who?")
    assert list(backbone.generate(prompt, whole, 5)) == list(backbone.generate(prompt, parts, 5))


@pytest.mark.parametrize(
    "changes", [{}, {"lookahead": 4, "lookbehind": 4}, {"copies": True}], ids=["plain", "around", "copies"]
)
@pytest.mark.parametrize("asked_before", [False, True])
def test_snapshot_continues_identically(asked_before: bool, changes: dict[str, object]) -> None:
    """A stream restored from its bytes goes on as the one that was kept."""
    backbone = _backbone(**changes)
    cache = backbone.new_cache()
    backbone.read(backbone.encode(TEXT), cache)
    if asked_before:
        cache.stream.ask(torch.tensor(backbone.encode("Who is it?")))
    again = SubqCache.from_bytes(cache.to_bytes(), backbone)
    assert again.tokens_seen == cache.tokens_seen
    more = torch.tensor(backbone.encode("Rain is expected, and 40213 is the code."))
    torch.testing.assert_close(again.stream.logits(more), cache.stream.logits(more), atol=1e-5, rtol=1e-5)


def test_loaded_backbone_answers_as_the_saved_one(tmp_path: Path) -> None:
    """Checkpoint and tokenizer in one folder are enough; equal files, one identity; other memory, same answers."""
    model = small_model(vocabulary=300)
    save_checkpoint(model, tmp_path, tokenizer=TOKENIZER, storage="float32")
    loaded = SubqBackbone.load(tmp_path)
    small = SubqBackbone.load(tmp_path, memory=MemoryConfig(device_bytes=0, host_bytes=0))
    assert loaded.identity == small.identity
    ids = loaded.encode(TEXT)
    assert (
        list(loaded.generate(ids, None, 5))
        == list(_backbone().generate(ids, None, 5))
        == list(small.generate(ids, None, 5))
    )


def test_a_later_choice_that_is_not_used_leaves_a_models_identity() -> None:
    """A cache names its model: a new field of the configuration would have every kept cache refused."""
    shape = json.dumps(_shape(SubqConfig()), sort_keys=True)
    assert hashlib.sha256(shape.encode()).hexdigest()[:12] == "8a726854e77e", f"what was added? {shape}"
    assert _shape(SubqConfig(copies=True)) != _shape(SubqConfig())


def test_stops_and_samples_as_the_interface_says() -> None:
    """Stop texts end the answer, a first id can be forbidden or need a lead, a seed gives the same draw."""
    backbone = _backbone()
    prompt = backbone.encode(TEXT)
    answer = list(backbone.generate(prompt, None, 8))
    text = backbone.decode(answer)
    assert list(backbone.generate(prompt, None, 8, stop_texts=[text[:1]])) == []
    second = next(backbone.generate(prompt, None, 1, suppress_first=answer[:1]))
    assert second != answer[0]
    lead = backbone.score(prompt, answer[:1]) - backbone.score(prompt, [second])
    for margin, begins in ((lead, answer[0]), (lead * 1.01 + 1e-6, second)):
        reluctant = Reluctance(token=answer[0], margin=margin)
        assert next(backbone.generate(prompt, None, 1, reluctant=reluctant)) == begins
    warm = Sampling(temperature=2.0, seed=4)
    assert list(backbone.generate(prompt, None, 8, sampling=warm)) == list(
        backbone.generate(prompt, None, 8, sampling=warm)
    )
    assert len(list(backbone.generate(prompt, None, 8, cancelled=lambda: True))) <= 1


def test_misuse_names_both_sides() -> None:
    """Another model's cache, ids outside the vocabulary, an empty prompt, bytes of something else."""
    backbone, other = _backbone(), _backbone(top_k=2)
    with pytest.raises(
        ValueError, match=f"belongs to model {other.identity}, this backbone is {backbone.identity}"
    ):
        backbone.read([1], other.new_cache())
    with pytest.raises(ValueError, match="token id 300 is outside the vocabulary of 300"):
        backbone.read([300], backbone.new_cache())
    with pytest.raises(ValueError, match="the prompt is empty"):
        backbone.generate([])
    with pytest.raises(ValueError, match="no snapshot of a subq stream"):
        SubqCache.from_bytes(b"nothing of ours", backbone)
    with pytest.raises(ValueError, match="the tokenizer has 300 ids, the model 97"):
        SubqBackbone(small_model(), TOKENIZER)
