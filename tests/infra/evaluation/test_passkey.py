"""Keys in long text: patched trials equal a text that holds the needle, and the figures say what was found."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from infra.evaluation.haystack import Haystack
from infra.evaluation.passkey import Cell, PasskeyTest, _miss, table
from models.subq import SubqModel
from models.subq.router import Routing
from tests.infra.training.subq_case import MODEL, FewWordings, small_data


def _model(**changes: object) -> SubqModel:
    torch.manual_seed(0)
    model = SubqModel(replace(MODEL, **changes)).eval().requires_grad_(False)  # type: ignore[arg-type]
    if model.copier is not None:
        torch.nn.init.constant_(model.copier.gate.bias, 3.0)
    return model


def _test(model: SubqModel, chunks: int = 100) -> PasskeyTest:
    data = small_data()
    hay = Haystack(model, data.tokens[: chunks * 32].astype(np.int64), segment=512)
    return PasskeyTest(model, hay, data.tokenizer.encode_spans, data.names, FewWordings())


AROUND = {"lookahead": 16, "lookbehind": 16}


@pytest.mark.parametrize("changes", [{}, AROUND, {"lookahead": 5}, {"lookbehind": 16}])
def test_haystack_in_segments_is_the_text_in_one(changes: dict[str, object]) -> None:
    """Wherever segments are cut, landmarks, keys and values are those of one pass over the whole text."""
    model, ids = _model(**changes), small_data().tokens[:3_200].astype(np.int64)
    one, cut = Haystack(model, ids), Haystack(model, ids, segment=224)
    torch.testing.assert_close(cut.kv, one.kv, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(cut.landmarks, one.landmarks, atol=1e-3, rtol=1e-3)
    codes = model.encode(model.lower(torch.from_numpy(ids)[None])[0])
    torch.testing.assert_close(cut.kv[:, :, 0], codes.keys[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("changes", [{}, AROUND])
@pytest.mark.parametrize("place", [0, 37, 1_000, 1_040, 3_000])
def test_patches_are_what_the_needle_changes(place: int, changes: dict[str, object]) -> None:
    """Encoding the neighbourhood again gives what encoding the whole text with the needle gives."""
    model, ids = _model(lower_blocks=2, **changes), small_data().tokens[:4_096].astype(np.int64)
    hay = Haystack(model, ids)
    needle = tuple(range(300, 340))
    patches = hay.patched([[(place, needle)]])
    written = ids.copy()
    written[place : place + len(needle)] = needle
    expected = Haystack(model, written)
    inside = patches.chunks[0]
    torch.testing.assert_close(patches.kv[0], expected.kv[inside], atol=1e-4, rtol=1e-3)
    outside = np.setdiff1d(np.arange(128), inside.numpy())
    torch.testing.assert_close(expected.kv[outside], hay.kv[outside], atol=1e-4, rtol=1e-3)


def test_search_sees_the_patched_landmarks_and_not_those_they_replace() -> None:
    """What a needle says is found at its chunk; what stood there before is not; what is too new is not."""
    hay = Haystack(_model(), small_data().tokens[:4_096].astype(np.int64))
    patches = hay.patched([[(1_000, tuple(range(300, 340)))]])
    chunk, first = int(patches.chunks[0, 0]), 10
    new, old = patches.landmarks[0, 0].float(), hay.landmarks[chunk].float()
    newest = torch.tensor([100, 100, chunk - first - 1])
    scores, found = hay.search(torch.stack((new, old, new))[None], first, 110, newest, 1, patches)
    assert int(found[0, 0]) == chunk and float(scores[0, 0]) == pytest.approx(1, abs=1e-2)
    assert float(scores[0, 1]) < 1 - 1e-4 or int(found[0, 1]) != chunk
    assert int(found[0, 2]) != chunk
    keys, _ = hay.gather(found[:, :1], patches)
    torch.testing.assert_close(keys[0], patches.kv[0, 0, :, 0])


@pytest.mark.parametrize(
    "changes", [{}, {"retrieval": "token"}, {"neighbours": True}, AROUND, {"copies": True, **AROUND}]
)
def test_patched_trial_asks_as_the_whole_text_would(changes: dict[str, object]) -> None:
    """Chosen chunks and answers of a patched trial are those of one pass over the text that holds it all."""
    model = _model(**changes)
    test = _test(model)
    rng = random.Random(3)
    trial = test._trial(test._needles(Cell(name="x", distractors=1), rng), [5, 40], 0, 100, rng)
    found = test._ask(test.hay, 0, 100, [trial], test.hay.patched([trial.needles]))
    ids = test.hay.ids.copy()
    for at, needle in trial.needles:
        ids[at : at + len(needle)] = needle
    ids[-len(trial.tail) :] = trial.tail
    out = model(torch.from_numpy(ids)[None])
    unit = 99 * 32 if model.config.retrieval == "token" else 99
    read = set(out.routing.indices[0, unit].tolist())
    begin = 99 * 32
    logits = model.next_logits(out.hidden, model.copied(out, torch.from_numpy(ids)[None]))[0]
    told = logits[begin : begin + len(trial.answer)].argmax(-1).tolist()
    assert found[0]["recall"] == float(set(trial.gold) <= read)
    assert found[0]["any"] == float(bool(set(trial.gold) & read))
    assert found[0]["exact"] == float(told == list(trial.answer))


@pytest.mark.parametrize("place", [37, 32 * 41])
def test_what_is_copied_of_patched_chunks_is_what_the_whole_text_says(place: int) -> None:
    """Keys and tokens of every chunk, the one before a needle that begins with a chunk among them."""
    model, ids = _model(copies=True), small_data().tokens[:3_200].astype(np.int64)
    hay, needle = Haystack(model, ids), tuple(range(300, 340))
    patches = hay.patched([[(place, needle)]])
    written = ids.copy()
    written[place : place + len(needle)] = needle
    chunks = torch.arange(100)
    routing = Routing(chunks.view(50, 2).clone(), torch.full((50, 2), 0.5))
    routing.indices[3, 1] = -1
    found = hay.copies(routing, 0, patches)
    told = torch.from_numpy(written)[None]
    out = model(told)
    assert found is not None and model.copier is not None
    expected = model.copier.offered(out.lower, told, out.routing)
    torch.testing.assert_close(found.keys[:7], expected.keys[:7], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.keys[8:], expected.keys[8:], atol=1e-4, rtol=1e-3)
    assert torch.equal(found.followed[:7], expected.followed[:7])
    assert torch.equal(found.followed[8:], expected.followed[8:])
    assert found.indices[0, 3].tolist() == [6, -1] and found.unit == 32
    assert hay.ids_bytes_a_chunk == 4 * 32
    assert hay.kv_bytes_a_chunk == Haystack(_model(), ids).kv_bytes_a_chunk + 4 * 32 * model.config.head_dim
    assert Haystack(_model(), ids).copies(routing, 0, None) is None


def test_a_miss_says_what_was_told_and_what_had_been_read() -> None:
    """Every wrong trial of a row is there: the key's depth, the chunks read by needle and weight, who holds what
    was told instead; a right one is not."""
    test = _test(_model(top_k=128))
    row = test.row(Cell(name="five", distractors=4), 3_200, 6, 0)
    assert len(row["misses"]) == round(row["n"] * (1 - row["exact"] / 100)) > 0
    for miss in row["misses"]:
        assert (
            0 <= miss["depth"] < 1
            and miss["told"] != miss["wanted"]
            and len(miss["told"]) == len(miss["wanted"])
        )
        assert (
            {0, 1, 2, 3, 4, -1} >= {of for of, _, _ in miss["read"]} >= {0, -1}
        )  # so many chunks: the key's too
        assert {of for of, gold, _ in miss["read"] if gold} == {0}
        assert sum(weight for _, _, weight in miss["read"]) == pytest.approx(1, abs=0.01)
    rng = random.Random(3)
    trial = test._trial(test._needles(Cell(name="x", distractors=2), rng), [5, 40, 60], 0, 100, rng)
    other = trial.needles[2][1]
    told = [*other[3:6], 0]
    routing = Routing(torch.tensor([[[trial.gold[0], 9, -1]]]), torch.tensor([[[0.75, 0.25, 0.0]]]))
    miss = _miss(trial, told, routing, (0, 0), 0, 100, 32)
    assert (miss["told_by"], miss["depth"]) == ([2], trial.gold[0] / 100)
    assert miss["read"] == [[0, 1, 0.75], [-1, 0, 0.25]]


def test_table_has_a_row_for_every_cell_that_fits() -> None:
    """Cells whose needles do not fit a length are left out; the rest state exact match, recall and bytes."""
    test = _test(_model())
    rows = table(test, (1_024, 3_200), [Cell(name="one"), Cell(name="five", distractors=9)], trials=3)
    assert [(row["length"], row["cell"]) for row in rows] == [(1_024, "one"), (3_200, "one"), (3_200, "five")]
    for row in rows:
        assert (
            row["n"] == 3 and 0 <= row["exact"] <= 100 and row["landmark_bytes"] == row["length"] // 32 * 64
        )
    stream = test.stream_row([Cell(name="one")], 3_200, keys=4, seed=0)
    assert stream["what"] == "stream" and stream["n"] == 4


def test_what_does_not_fit_is_refused() -> None:
    """Lengths, mixers and distractors that make no trial are named."""
    test = _test(_model())
    with pytest.raises(ValueError, match="length: given 6400; allowed: 3200 at most"):
        test.row(Cell(name="one"), 6_400, 1, 0)
    with pytest.raises(ValueError, match="distractors: given 2 with named False"):
        Cell(name="x", named=False, distractors=2)
    with pytest.raises(ValueError, match="trials need lower mixers of sliding windows"):
        _test(_model(lower_mixers=("state_space",))).row(Cell(name="one"), 1_024, 1, 0)
