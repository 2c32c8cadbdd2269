"""Reading in segments gives what one pass gives."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.subq.memory import MemoryConfig
from models.subq.streaming import SubqStream
from tests.models.subq.small import one_pass, small_model

EXACT = MemoryConfig(landmark_dtype="float32")
SHAPES = {
    "sliding": {},
    "gated_linear": {"lower_mixers": ("gated_linear",)},
    "state_space": {"lower_mixers": ("state_space",)},
    "full": {"lower_mixers": ("full",)},
    "mixture": {"lower_mixers": ("gated_linear", "sliding"), "upper_mixers": ("sliding", "state_space")},
    "token": {"retrieval": "token"},
    "untied": {"tied": False},
    "neighbours": {"neighbours": True},
    "rerank": {"rerank": True},
    "lookahead": {"lookahead": 3, "rerank": True},
    "lookahead, half a chunk": {"lookahead": 4, "near": 3},
    "around": {"lookahead": 4, "lookbehind": 4},
    "lookbehind": {"lookbehind": 2},
    "around, token": {"lookahead": 2, "lookbehind": 3, "retrieval": "token"},
    "lean": {"encoder": "lean", "shared_reader": True, "rerank": True},
    "log_k": {"top_k_log": 0.7, "top_k": 4},
    "lean encoder": {"encoder": "lean"},
    "shared reader": {"shared_reader": True},
    "linear": {"lower_mixers": ("gated_linear",), "upper_mixers": ("gated_linear",)},
    "state space": {"lower_mixers": ("state_space",), "upper_mixers": ("state_space",), "rerank": True},
    "mixed": {"lower_mixers": ("gated_linear", "sliding"), "upper_mixers": ("gated_linear", "sliding")},
    "tree": {"index": "tree"},
    "copies": {"copies": True},
    "copies, near 1": {"copies": True, "near": 1},
    "copies, around": {"copies": True, "lookahead": 4, "lookbehind": 4},
    "copies, lean": {
        "copies": True,
        "encoder": "lean",
        "shared_reader": True,
        "rerank": True,
        "neighbours": True,
        "near": 2,
    },
    "copies, linear": {"copies": True, "lower_mixers": ("gated_linear",), "upper_mixers": ("state_space",)},
    "no_retrieval": {"upper_blocks": 0, "retrieval": "none", "lower_mixers": ("state_space",)},
}


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, 119), max_size=12), length=st.integers(30, 120))
def test_segments_of_any_size_give_the_logits_of_one_pass(shape: str, cuts: list[int], length: int) -> None:
    """Wherever a stream is cut, its logits are those of one pass."""
    model = small_model(**SHAPES[shape])
    ids = torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(length))
    stream = SubqStream(model, EXACT)
    bounds = [0, *sorted({cut for cut in cuts if cut < length}), length]
    parts = [stream.logits(ids[a:b]) for a, b in pairwise(bounds)]
    torch.testing.assert_close(torch.cat(parts), one_pass(model, ids), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("shape", ["sliding", "mixture", "neighbours", "around", "copies", "copies, lean"])
def test_what_was_only_read_gives_the_logits_of_one_pass(shape: str) -> None:
    """Reading without asking leaves out only what no later logits depend on, also far beyond the model's reach."""
    model = small_model(**SHAPES[shape])
    ids = torch.randint(0, 97, (9_600,))
    stream = SubqStream(model, EXACT)
    for piece in ids[:-20].split(2_500):
        stream.read(piece)
    torch.testing.assert_close(stream.logits(ids[-20:]), one_pass(model, ids)[-20:], atol=2e-4, rtol=2e-4)


def test_state_does_not_grow_with_the_stream() -> None:
    """Beside the memory of chunks a stream of sliding windows holds a fixed number of bytes."""
    stream = SubqStream(small_model(), EXACT)
    sizes = []
    for _ in range(6):
        stream.read(torch.randint(0, 97, (8_192,)))
        sizes.append(stream.state_bytes)
    assert sizes[2:] == sizes[1:-1]


def test_fork_leaves_the_stream_as_it_was() -> None:
    """What a fork reads changes nothing in the stream that it came from."""
    model = small_model()
    ids = torch.randint(0, 97, (300,))
    stream, undisturbed = SubqStream(model, EXACT), SubqStream(model, EXACT)
    for each in (stream, undisturbed):
        each.read(ids[:200])
    fork = stream.fork()
    fork.ask(torch.randint(0, 97, (77,)))
    fork.read(torch.randint(0, 97, (500,)))
    expected = undisturbed.logits(ids[200:])
    assert torch.equal(stream.logits(ids[200:]), expected)
    assert len(stream.memory) == 300 // 8


@pytest.mark.parametrize("shape", ["sliding", "around", "copies"])
def test_question_on_the_grid_asks_as_training_does(shape: str) -> None:
    """A question whose last token is the first of a chunk gets the logits of one pass."""
    model = small_model(**SHAPES[shape])
    ids = torch.randint(0, 97, (161,))  # 20 chunks of 8, and the question's last token
    stream = SubqStream(model, EXACT)
    stream.read(ids[:140])
    answer = stream.ask(ids[140:])
    torch.testing.assert_close(answer, one_pass(model, ids)[-1], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("shape", ["sliding", "around"])
@pytest.mark.parametrize("off", [1, 3, 7])
def test_question_off_the_grid_is_answered_from_the_last_chunk_of_tokens(off: int, shape: str) -> None:
    """At any moment the last 8 tokens ask: what they find does not depend on where the grid stands."""
    model = small_model(lower_blocks=1, upper_blocks=1, window=6, **SHAPES[shape])
    ids = torch.randint(0, 97, (200 + off,))
    stream = SubqStream(model, EXACT)
    stream.read(ids[:-1])
    stream.anchor()
    hidden, _ = model.lower(ids[None, :-1])
    expected = model.encode(hidden[:, -8:]).queries[0, 0]
    torch.testing.assert_close(stream._queries[len(ids) - 1], expected, atol=1e-5, rtol=1e-5)
    later = torch.randint(0, 97, (40,))
    stream.logits(later)
    hidden, _ = model.lower(torch.cat((ids[:-1], later))[None])
    for at in (len(ids) - 1 + 8, len(ids) - 1 + 16):
        expected = model.encode(hidden[:, at - 8 : at]).queries[0, 0]
        torch.testing.assert_close(stream._queries[at], expected, atol=1e-5, rtol=1e-5)


MEMORIES = {
    "host": replace(EXACT, device_bytes=0, compressed=False),
    "host in 8 bits": replace(EXACT, device_bytes=0),
    "encoded again": replace(EXACT, device_bytes=0, host_bytes=0),
    "in parts": replace(EXACT, device_bytes=150_000, host_bytes=150_000, compressed=False),
    "landmarks in 16 bits": MemoryConfig(),
}


@pytest.mark.parametrize("shape", ["sliding", "around", "copies, lean"])
@pytest.mark.parametrize("name", MEMORIES)
def test_memories_agree(name: str, shape: str) -> None:
    """Wherever keys and values live, the answer is that of keeping them all; rounding is bounded."""
    model = small_model(**SHAPES[shape])
    ids = torch.randint(0, 97, (3_000,))
    stream = SubqStream(model, MEMORIES[name])
    stream.read(ids[:-10])
    found = stream.logits(ids[-10:])
    close = 2e-4 if name in ("host", "encoded again", "in parts") else 2e-2
    torch.testing.assert_close(found, one_pass(model, ids)[-10:], atol=close, rtol=close)


@pytest.mark.parametrize("shape", ["sliding", "around", "lookahead", "copies, around"])
def test_chunks_encoded_again_equal_the_stored_ones(shape: str) -> None:
    """Keys and values from token ids are those that were computed when the stream was read, the newest's too."""
    model = small_model(**SHAPES[shape])
    stream = SubqStream(model, EXACT)
    stream.read(torch.randint(0, 97, (1_004,)))
    chunks = torch.tensor([0, 1, 5, 60, 124])
    again = stream._reencode(chunks)
    stored = [part for part in stream.memory.split(stream.memory.rows(chunks)) if part is not None]
    assert len(stored) == 2 + ("copies" in shape)
    for kept, encoded in zip(stored, again, strict=True):
        torch.testing.assert_close(encoded, kept, atol=1e-5, rtol=1e-5)


def test_budget_that_the_mixer_cannot_keep_is_refused() -> None:
    """Chunks of a mixer without an end to its memory cannot be dropped and encoded again exactly."""
    model = small_model(lower_mixers=("gated_linear",))
    with pytest.raises(ValueError, match=r"host_bytes: given 0 .*gated_linear.*reencode_tokens"):
        SubqStream(model, replace(EXACT, host_bytes=0))


def test_places_hold_no_more_than_their_budgets() -> None:
    """Bytes move down as they exceed a place's budget, and what was dropped holds none."""
    model = small_model()
    stream = SubqStream(model, MEMORIES["in parts"])
    stream.read(torch.randint(0, 97, (20_000,)))
    held = stream.memory.nbytes
    open_segment = 64 * 8 * 2 * 16 * 4
    assert held["device"] <= 150_000 + open_segment
    assert 0 < held["host"] <= 150_000
    assert held["landmarks"] == len(stream.memory) * 16 * 4
