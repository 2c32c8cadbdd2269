"""Copying from chosen chunks: one distribution with the logits, nothing of the future, streams as one pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.subq import SubqModel
from models.subq.checkpoint import load_checkpoint, save_checkpoint
from models.subq.memory import MemoryConfig
from models.subq.snapshot import stream_from_bytes, stream_to_bytes
from models.subq.streaming import SubqStream
from tests.models.subq.small import SMALL, one_pass, small_model

EXACT = MemoryConfig(landmark_dtype="float32")


def _open(**changes: object) -> SubqModel:
    return small_model(copies=True, **changes)


def _ids(tokens: int = 128) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randint(0, 20, (1, tokens + 1))


def _losses(model: SubqModel, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    out = model(ids)
    own = F.cross_entropy(model.logits(out.hidden).flatten(0, 1), targets.flatten(), reduction="none")
    return model.token_losses(out, ids, own.view_as(ids), targets)


def test_chances_of_all_tokens_sum_to_one() -> None:
    """Logits and copies share one distribution, at every place, also where nothing can be copied yet."""
    model, ids = _open(), _ids()[:, :-1]
    chances = torch.stack([(-_losses(model, ids, torch.full_like(ids, token))).exp() for token in range(97)])
    torch.testing.assert_close(chances.sum(0), torch.ones_like(ids, dtype=torch.float32), atol=1e-4, rtol=0)
    own = torch.stack(
        [model.logits(model(ids).hidden).log_softmax(-1)[..., token].exp() for token in range(97)]
    )
    assert chances[:, 0, : 2 * SMALL.chunk].allclose(own[:, 0, : 2 * SMALL.chunk], atol=1e-5)
    assert (chances - own).abs().amax(0)[0, 2 * SMALL.chunk :].min() > 1e-3


def test_only_past_tokens_are_copied() -> None:
    """A later token changes no earlier loss; near 1 is the closest that there is."""
    model, ids = _open(near=1), _ids()
    before = _losses(model, ids[:, :-1], ids[:, 1:])
    other = ids.clone()
    other[:, 70:] = (other[:, 70:] + 1) % 20
    after = _losses(model, other[:, :-1], other[:, 1:])
    torch.testing.assert_close(after[:, :69], before[:, :69])
    assert (after[:, 69:] - before[:, 69:]).abs().max() > 1e-3


def test_what_followed_like_tokens_is_told() -> None:
    """Asked by its own key in one text said twice, the head puts nearly all it copies on the token that came."""
    model = _open(top_k=3)
    copier = model.copier
    assert copier is not None
    torch.nn.init.zeros_(copier.gate.weight)
    copier.query.weight.copy_(copier.key.weight)
    half = torch.randperm(97)[:64]
    ids = torch.cat((half, half, half[:1]))[None]
    out = model(ids[:, :-1])
    assert out.lower is not None and out.routing is not None
    # all chunks of the first half on offer to those of the second; equal tokens ask as they are held
    routing = out.routing._replace(
        indices=torch.arange(8).expand(1, 16, 8).clone(), weights=torch.full((1, 16, 8), 1 / 8)
    )
    sure = torch.full((1, 128), 20.0)  # the logits do not know it
    hidden = model.embedding(ids[:, :-1])
    told = copier(sure, hidden, ids[:, 1:], copier.offered(hidden, ids[:, :-1], routing))
    assert told[:, 64:].mean() < 1.5


def test_chances_are_those_that_the_losses_say() -> None:
    """Of every target; of tokens by themselves, in parts of a pass and in the whole."""
    model, ids = _open(neighbours=True), _ids(124)  # the last chunk is open
    out = model(ids[:, :-1])
    copied = model.copied(out, ids[:, :-1])
    assert copied is not None
    chances = model.next_logits(out.hidden, copied)
    told = -chances.gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(told, _losses(model, ids[:, :-1], ids[:, 1:]), atol=1e-5, rtol=1e-5)
    for begin, end in ((0, 124), (3, 9), (8, 16), (21, 60), (60, 124), (123, 124)):
        part = model.next_logits(out.hidden[:, begin:end], copied.part(begin, end))
        torch.testing.assert_close(part, chances[:, begin:end], atol=1e-5, rtol=1e-5)
        # a part of a part, as a stream's piece begins inside a block
        later = model.next_logits(
            out.hidden[:, end - 1 : end], copied.part(begin, end).part(end - 1 - begin, end - begin)
        )
        torch.testing.assert_close(later, chances[:, end - 1 : end], atol=1e-5, rtol=1e-5)
    places = torch.tensor([0, 77, 5, 123])
    alone = model.next_logits(out.hidden[:, places], copied.at(places))
    torch.testing.assert_close(alone, chances[:, places], atol=1e-5, rtol=1e-5)
    none = torch.empty(0, dtype=torch.long)
    assert model.next_logits(out.hidden[:, none], copied.at(none)).shape == (1, 0, 97)
    with pytest.raises(
        ValueError, match="16 blocks of 8 tokens, the first without 0, do not hold 129 tokens"
    ):
        model.next_logits(torch.zeros(1, 129, 32), copied)


def test_a_model_that_copies_is_kept_and_streams(tmp_path: Path) -> None:
    """Its head is in the checkpoint, and a stream of the loaded model says what one pass of the saved one does."""
    model = _open()
    save_checkpoint(model, tmp_path, storage="float32")
    again, _ = load_checkpoint(tmp_path, "cpu", torch.float32)
    ids = _ids()
    torch.testing.assert_close(
        _losses(again, ids[:, :-1], ids[:, 1:]), _losses(model, ids[:, :-1], ids[:, 1:])
    )
    said = SubqStream(again, EXACT).logits(ids[0])
    torch.testing.assert_close(said, one_pass(model, ids[0]), atol=2e-4, rtol=2e-4)
    with pytest.raises(ValueError, match="copies: given with retrieval 'none'"):
        small_model(copies=True, retrieval="none", upper_blocks=0)


def test_a_stream_of_tokens_one_by_one_copies_what_lies_far_back() -> None:
    """Step by step the chances of one pass, of which the logits have no part: only what stands there is told."""
    model = _open(top_k=4)
    assert model.copier is not None
    model.copier.query.weight.copy_(model.copier.key.weight)
    torch.nn.init.constant_(model.copier.gate.bias, 20.0)
    torch.nn.init.zeros_(model.copier.gate.weight)
    ids = _ids(300)[0]
    stream, whole = SubqStream(model, EXACT), one_pass(model, ids)
    stream.read(ids[:240])
    for at in range(240, 300):
        (said,) = stream.logits(ids[at : at + 1])
        torch.testing.assert_close(said, whole[at], atol=2e-4, rtol=2e-4)
    # nothing but what stands in the text is told
    assert whole[240:300].exp()[:, 20:].max() < 1e-6


@pytest.mark.parametrize(
    "memory", [MemoryConfig(), MemoryConfig(device_bytes=0), MemoryConfig(device_bytes=0, host_bytes=0)]
)
def test_bytes_of_what_is_copied_are_counted(memory: MemoryConfig) -> None:
    """One key a token beside those of the readers, wherever these live, and the ids, which are kept in any case."""
    held = []
    for copies in (False, True):
        stream = SubqStream(small_model(copies=copies), memory)
        stream.read(torch.randint(0, 97, (64 * 8 * 4,)))
        held.append(stream.memory.nbytes)
    without, with_copies = held
    for place in ("device", "host"):
        assert 2 * with_copies[place] == 3 * without[place]  # one head of keys, one of values
    assert with_copies["ids"] == without["ids"] == 4 * 64 * 8 * 4
    assert with_copies["landmarks"] == without["landmarks"]


def test_streams_of_unequal_length_and_their_forks_do_not_meet() -> None:
    """Read in turn, in pieces of other sizes, each says what it says alone; so does a fork of it that went on."""
    model = _open()
    texts = [torch.randint(0, 97, (length,)) for length in (70, 333, 150)]
    streams = [SubqStream(model, EXACT) for _ in texts]
    said: list[list[torch.Tensor]] = [[] for _ in texts]
    for begin in range(0, 333, 37):
        for at, (text, stream) in enumerate(zip(texts, streams, strict=True)):
            said[at].append(stream.logits(text[begin : begin + 37]))
            stream.fork().logits(torch.randint(0, 97, (at + 11,)))
    for text, found in zip(texts, said, strict=True):
        torch.testing.assert_close(torch.cat(found), one_pass(model, text), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("memory", [EXACT, replace(EXACT, device_bytes=0, host_bytes=0)])
def test_a_stream_goes_on_from_its_bytes(memory: MemoryConfig) -> None:
    """Cut anywhere, also behind a question off the grid, and where chunks are encoded again from their ids."""
    model, ids = _open(), torch.randint(0, 97, (900,))
    for cut in (5, 64, 203, 900):
        stream = SubqStream(model, memory)
        stream.read(ids[:cut])
        stream.ask(ids[:3])
        twin = stream_from_bytes(stream_to_bytes(stream, "m"), model, "m", memory)
        more = torch.randint(0, 97, (100,))
        torch.testing.assert_close(twin.logits(more), stream.logits(more), atol=1e-5, rtol=1e-5)
        assert twin.memory.nbytes == stream.memory.nbytes


def test_what_a_bounded_stream_forgets_is_not_copied() -> None:
    """The oldest chunks leave with their tokens; what is left is found under its own numbers."""
    model = _open()
    stream, whole = SubqStream(model, replace(EXACT, most_chunks=128)), SubqStream(model, EXACT)
    ids = torch.randint(0, 97, (8 * 400 + 3,))
    for part in ids.split(300):
        stream.read(part)
        whole.read(part)
    assert stream.memory.first > 0
    newest = torch.arange(stream.memory.first, 400)
    assert torch.equal(stream.memory.token_ids(newest), ids[: 8 * 400].view(400, 8)[newest].int())
    assert torch.equal(stream._followed(newest), ids[1 : 8 * 400 + 1].view(400, 8)[newest])
    torch.testing.assert_close(stream.memory.rows(newest), whole.memory.rows(newest), atol=1e-5, rtol=1e-5)
    assert bool((stream.memory.token_ids(torch.tensor([0])) == -1).all())
    with pytest.raises(ValueError, match=r"chunk 0 is gone; the memory holds \d+ to 399"):
        stream.memory.rows(torch.tensor([0]))


def test_chunks_without_the_keys_that_the_model_copies_by_are_refused() -> None:
    """A memory of a model that copies takes them, that of any other does not."""
    for copies, given in ((True, "none"), (False, "keys")):
        stream = SubqStream(small_model(copies=copies), EXACT)
        marks, tokens = torch.zeros(1, 16), torch.zeros(1, 8, 1, 16)
        with pytest.raises(ValueError, match=f"copied: given {given}, model with copies {copies}; allowed"):
            stream.memory.append(
                marks, tokens, tokens, torch.zeros(1, 8), None if copies else torch.zeros(1, 8, 16)
            )
