"""Each compared method against its formula in plain loops, and what all of them promise."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.compared import METHODS, method
from models.compared.base import budget_of
from models.compared.keys import KeyNorm
from models.compared.trace import LayerTrace, read_exactly
from models.compared.window import sinks_and_last
from models.rotary import RotaryTable
from tests.models import tiny
from tests.models.compared import reference
from tests.models.compared.tiny_context import N, chosen, compressed, ready, trace

UNLEARNED = [
    name
    for name in METHODS
    if not any(part in name for part in ("ranker", "streaming", "brought_back", "projection", "autoencoder"))
]


def test_trace_holds_what_the_cache_of_the_model_holds() -> None:
    """Keys and values of our own cache with nothing evicted, and logits of a question through both."""
    backbone, ids = tiny.backbone(), [1, *tiny.ids(N - 1)]
    cache = backbone.new_cache(
        tiny.budgets(sinks=0, ring=N + 16, evict_block=1, read_block=1, compressor="drop")
    )
    backbone.read(ids, cache)
    for layer in trace().layers:
        keys, values, _, _ = cache.stored[layer.spec.index].visible()
        torch.testing.assert_close(layer.keys, keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.values, values, atol=1e-4, rtol=1e-4)
    question = tiny.ids(7, seed=5)
    memory = method("full").memory(trace(), trace().full_bytes)
    torch.testing.assert_close(
        backbone.logits(question, memory.as_cache()), backbone.logits(question, cache), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.3])
@pytest.mark.parametrize("name", [name for name in UNLEARNED if not name.startswith("full")])
def test_bytes_never_exceed_the_budget_and_a_question_can_be_read(name: str, keep: float) -> None:
    """Metadata counted; logits are finite; the sliding layers are untouched."""
    budget = budget_of(trace(), keep)
    try:
        memory = ready(name).memory(trace(), budget)
    except ValueError as error:
        assert name in ("razor", "ours_latents", "ours_question_bank"), (
            error
        )  # these have a floor of their own
        assert str(budget) in str(error) or str(budget // 2) in str(error)
        return
    assert 0 < memory.nbytes <= budget
    assert memory.sliding_bytes == trace().sliding_bytes
    assert bool(torch.isfinite(tiny.backbone().logits(tiny.ids(4), memory.as_cache())).all())


@pytest.mark.parametrize("name", [n for n in UNLEARNED if not n.startswith("ours") and n != "kv_compress"])
def test_whole_budget_reads_like_the_full_cache(name: str) -> None:
    """Nothing is lost when everything fits (sharing weights does lose)."""
    made = dataclasses.replace(ready(name), span=1) if name == "shared_attention" else ready(name)
    question = tiny.ids(6, seed=2)
    full = method("full").memory(trace(), trace().full_bytes)
    memory = made.memory(trace(), trace().full_bytes)
    torch.testing.assert_close(
        tiny.backbone().logits(question, memory.as_cache()),
        tiny.backbone().logits(question, full.as_cache()),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", [n for n in UNLEARNED if n not in ("full", "full_cache", "truncation")])
def test_budget_smaller_than_what_is_pinned_names_both(name: str) -> None:
    """Two tokens a head are fewer than four sinks."""
    budget = trace().full_bytes * 2 // N
    with pytest.raises(ValueError, match=r"\d") as error:
        ready(name).memory(trace(), budget)
    assert "sinks" in str(error.value) or "keep" in str(error.value) or "need" in str(error.value)


def test_window_sinks_moves_pairs_together_unless_told_otherwise() -> None:
    """Sinks and last tokens; places 0, 1, 2, … as in the paper, or those of the text."""
    count = int(trace().full_bytes * 0.4) // (trace().full_bytes // N)
    for kept, layer in zip(compressed("window_sinks", 0.4), trace().layers, strict=True):
        assert kept.places[0].tolist() == list(range(count)) and kept.next_place == count
        wanted = [*range(4), *range(N - count + 4, N)]
        torch.testing.assert_close(kept.keys[1], layer.keys[1, wanted])
    kept = compressed("window_sinks", 0.4, places_in_cache=False)[0]
    assert kept.places[0].tolist() == wanted and kept.next_place == N


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_snapkv_keeps_its_window_and_what_the_window_looks_at(pooling: str) -> None:
    """Summed attention of the last queries, pooled before the window, mean over the group."""
    count = int(trace().full_bytes * 0.4) // (trace().full_bytes // N)
    for kept, layer in zip(compressed("snapkv", 0.4, pooling=pooling), trace().layers, strict=True):
        for head in range(2):
            scores = reference.summed(layer, head, range(N - 8, N))
            before = reference.pooled(scores[: N - 8], 5, pooling)
            before[:4] = [float("inf")] * 4
            assert len(chosen(kept, head)) == count and chosen(kept, head) >= set(range(N - 8, N))
            assert reference.is_best(chosen(kept, head) - set(range(N - 8, N)), before)


def test_h2o_sums_attention_over_all_queries_and_keeps_recent_tokens() -> None:
    """Half of the budget each."""
    layer, kept = trace().layers[0], compressed("h2o", 0.4)[0]
    count = sum(kept.counts) // 2
    scores = reference.summed(layer, 0, range(N))
    recent = set(range(N - count // 2, N))
    scores = [float("inf") if i < 4 or i in recent else s for i, s in enumerate(scores)]
    assert chosen(kept, 0) == reference.best(scores, count)


def test_key_difference_is_the_cosine_to_the_mean_turned_key() -> None:
    """Keys at their places; the least alike stay."""
    layer, kept = trace().layers[1], compressed("key_difference", 0.3)[1]
    keys = [reference.turned(layer, layer.keys[1, i], i) for i in range(N)]
    mean = sum(key / key.norm() for key in keys) / N
    scores = [-float(key @ mean / key.norm() / mean.norm()) for key in keys]  # type: ignore[union-attr]
    scores[:4] = [float("inf")] * 4
    assert chosen(kept, 1) == reference.best(scores, kept.counts[1])


def test_key_norm_keeps_the_shortest_keys() -> None:
    """Beside the sinks."""
    layer = trace().layers[0]  # whose keys are normed alike: make them differ
    layer = dataclasses.replace(layer, keys=layer.keys * (1 + torch.rand(1, N, 1)))
    kept = ready("key_norm").keep_best(layer, 27)
    scores = [float("inf") if i < 4 else -float(layer.keys[0, i].norm()) for i in range(N)]
    assert len(chosen(kept, 0)) == kept.counts[0] and reference.is_best(chosen(kept, 0), scores)


def test_expected_attention_is_the_gaussian_expectation() -> None:
    """Moments of the queries after the sinks, mean rotation of the next places, values' lengths."""
    layer = trace().layers[1]
    made = dataclasses.replace(ready("expected_attention"), future=16)
    got = made.score(layer)
    n, d, s = N, layer.spec.head_dim, layer.spec.scaling
    basis = torch.eye(d, dtype=torch.float64)
    turn = sum(
        torch.stack([reference.turned(layer, basis[:, c], p) for c in range(d)], dim=1)
        for p in range(n, n + 16)
    )
    turn = turn / 16  # type: ignore[operator]
    for head in range(2):
        expected = [0.0] * n
        for query_head in reference.group(layer, head):
            queries = layer.queries[query_head, 4:].double()
            mean = queries.mean(0)
            moment = sum(torch.outer(q - mean, q - mean) for q in queries) / len(queries)
            logits = []
            for i in range(4, n):
                key = reference.turned(layer, layer.keys[head, i], i)
                logits.append(s * key @ (turn @ mean) + s**2 / 2 * key @ (turn @ moment @ turn.T) @ key)
            shares = torch.stack(logits).softmax(0).tolist()
            expected = [e + w / 2 for e, w in zip(expected, [0.0] * 4 + shares, strict=True)]
        wanted = [(expected[i] + 0.02 / n) * float(layer.values[head, i].norm()) for i in range(n)]
        torch.testing.assert_close(got[head].double(), torch.tensor(wanted).double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "each", "n", "wanted"),
    [
        # B = 28, w = 8: least (28-8)//20 = 1, most 39, step 12 over four layers
        (4, 28, 1000, [47, 35, 23, 11]),
        (3, 1200, 4000, None),
        (3, 100, 80, [80] * 3),
        (3, 100, 150, [100] * 3),
    ],
)
def test_pyramid_budgets_fall_linearly(layers: int, each: int, n: int, wanted: list[int] | None) -> None:
    """The numbers by hand; never more in all than the even budget, no layer above the context."""
    counts = ready("pyramidkv").counts(layers, each, n)
    if wanted is not None:
        total = sum(wanted) - layers * each
        assert counts == [wanted[0] - max(0, total), *wanted[1:]]
    assert sum(counts) <= layers * each and max(counts) <= n
    assert counts == sorted(counts, reverse=True)


def test_razor_reads_dropped_tokens_as_one_pair_that_weighs_them_all() -> None:
    """Output of a short head equals the formula N_d exp(q k) over sinks, window and the mean pair."""
    whole = {trace().layers[0].spec.index: frozenset({0})}
    for weighted in (True, False):
        made = method("razor", whole=whole, weighted=weighted)
        memory = made.memory(trace(), int(trace().full_bytes * 0.5))
        layer, kept = trace().layers[0], memory.held[0]
        assert kept.counts[0] == N and kept.counts[1] < N  # type: ignore[attr-defined]
        count = kept.counts[1] - 1  # type: ignore[attr-defined]
        held = [*range(4), *range(N - count + 4, N)]
        dropped = [i for i in range(N) if i not in held]
        keys = [reference.turned(layer, layer.keys[1, i], i) for i in range(N)]
        mean = (sum(keys[i] for i in dropped) / len(dropped), layer.values[1, dropped].double().mean(0))
        pairs = [(keys[i], layer.values[1, i], 1.0) for i in held]
        pairs.append((*mean, float(len(dropped)) if weighted else 1.0))
        query, own = layer.queries[2, 5], (layer.keys[1, 5], layer.values[1, 5])
        pairs.append((reference.turned(layer, own[0], N), own[1], 1.0))
        wanted = reference.read(layer, 1, query, N, pairs)
        view = memory.view(1).views[layer.spec.index]
        step = [torch.stack([x[0, 5], x[1, 5]])[None, :, None] for x in (layer.keys, layer.values)]
        all_keys, all_values = view.update(*step)
        asked = layer.spec.rotary.turn(layer.queries[:, 5:6], torch.tensor([N]))[None]
        got = view.attend(asked, all_keys, all_values, layer.spec.scaling, None)  # type: ignore[attr-defined]
        torch.testing.assert_close(got[0, 2, 0].double(), wanted, atol=1e-5, rtol=1e-4)


def test_razor_finds_heads_by_copies_of_random_tokens() -> None:
    """Echo and induction scores by loops over the copies; the best of the group counts; union of both rankings."""
    from models.compared.razor import REPEATS, head_scores, pick_heads

    backbone, p = tiny.backbone(), 6
    ids = torch.randint(backbone.vocabulary, (p,), generator=torch.Generator().manual_seed(3)).tolist()
    read = read_exactly(backbone, [1, *ids * REPEATS])
    layer, got = read.layers[0], head_scores(backbone, p, 3)
    places = range(1 + p, 1 + p * REPEATS)
    best = [0.0, 0.0]
    for query_head in reference.group(layer, 1):
        echo = induction = 0.0
        for i in places:
            row = reference.weights(layer, 1, layer.queries[query_head, i], i)
            copies = [j for j in range(1, i) if (i - j) % p == 0]
            echo += sum(row[j] for j in copies) / len(places)
            induction += sum(row[j + 1] for j in copies) / len(places)
        best = [max(best[0], induction), max(best[1], echo)]
    assert got[layer.spec.index, 1] == pytest.approx(best, rel=1e-3)
    scores = {(1, 0): (0.9, 0.0), (1, 1): (0.1, 0.2), (3, 0): (0.5, 0.8), (3, 1): (0.2, 0.1)}
    # 1% of four heads is none, of a hundred one
    assert pick_heads(scores, 0.14, 0.01) == {1: frozenset({0})}
    assert pick_heads(scores, 0.14, 0.2) == {1: frozenset({0}), 3: frozenset({0})}
    assert pick_heads(scores, 0.5, 0) == {1: frozenset({0}), 3: frozenset({0})}


def test_squeeze_moves_budget_from_the_most_alike_layers() -> None:
    """The most alike group gets its share, the sum stays, and nobody gets more than there is."""
    made = ready("squeeze")
    assert made.counts([0.5, 0.52, 0.8, 0.98, 0.99], 100, 1000) == [133, 133, 133, 50, 50]
    assert made.counts([0.5, 0.9], 60, 70) == [70, 50]
    assert made.counts([0.7, 0.7], 60, 100) == [60, 60]
    residual = [layer.likeness for layer in trace().layers]
    assert all(0 < value < 1 for value in residual)


def test_residual_likeness_is_measured_around_attention() -> None:
    """Against the hidden states of a plain forward pass, by hand."""
    backbone, ids = tiny.backbone(), [1, *tiny.ids(N - 1)]
    decoder = backbone.model.get_decoder()
    block, seen = decoder.layers[trace().layers[0].spec.index], {}
    hooks = [
        block.register_forward_pre_hook(
            lambda _, a, k: seen.update(before=a[0] if a else k["hidden_states"]), with_kwargs=True
        ),
        block.post_attention_layernorm.register_forward_hook(lambda _, __, out: seen.update(added=out)),
    ]
    backbone.model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    cosine = torch.cosine_similarity(seen["before"], seen["before"] + seen["added"], dim=-1).mean()
    assert trace().layers[0].likeness == pytest.approx(float(cosine), rel=1e-4)


def test_kv_compress_evicts_whole_blocks_of_least_squared_attention() -> None:
    """By the paper's order of steps, one block at a time over layers and heads; allocated bytes counted."""
    size, protected, budget = 4, 8, int(trace().full_bytes * 0.4)
    pair = trace().layers[0].pair_bytes + 8
    heads = []
    for layer in trace().layers:
        for head in range(2):
            metric = reference.summed(layer, head, range(N), power=2)
            metric[N - protected :] = [float("inf")] * protected
            order = sorted(range(N), key=lambda i: metric[i])
            blocks = [order[i : i + size] for i in range(0, N, size)]
            heads.append((blocks, metric))
    while sum(len(blocks) for blocks, _ in heads) * size * pair > budget:
        least = min((h for h in heads if len(h[0][0]) == size), key=lambda h: max(h[1][i] for i in h[0][0]))
        least[0].pop(0)
    kept = compressed("kv_compress", 0.4)
    for at, (blocks, _) in enumerate(heads):
        assert chosen(kept[at // 2], at % 2) == {i for block in blocks for i in block}
    allocated = sum(len(blocks) for blocks, _ in heads) * size * pair
    assert sum(layer.nbytes for layer in kept) == allocated


def test_shared_attention_stores_no_keys_and_reads_by_its_leaders_weights() -> None:
    """Half of the second layer's bytes; its output is the first one's weights times its own values."""
    kept = compressed("shared_attention", 1.0)
    assert kept[1].keys == [] and sum(k.nbytes for k in kept) == trace().full_bytes * 3 // 4
    memory = ready("shared_attention").memory(trace(), trace().full_bytes)
    views = memory.view(1).views
    first, second = (views[layer.spec.index] for layer in trace().layers)
    step = torch.zeros(1, 2, 1, 16)
    asked = torch.randn(1, 4, 1, 16)
    got = []
    for view in (first, second):
        keys, values = view.update(step, step)
        got.append(view.attend(asked, keys, values, 0.25, None))  # type: ignore[attr-defined]
    weights = first.weights  # type: ignore[attr-defined]
    values = torch.cat((trace().layers[1].values, step[0]), dim=1)
    wanted = torch.einsum("hgtn,hnd->hgtd", weights, values).reshape(1, 4, 1, 16)
    torch.testing.assert_close(got[1], wanted)
    assert not torch.allclose(got[0], got[1])


def test_question_bank_scores_by_questions_asked_after_the_context() -> None:
    """Mean attention of recorded queries at one place behind the end."""
    layer = trace().layers[1]
    made = ready("question_bank")
    bank = made.bank[layer.spec.index]
    few = dataclasses.replace(made, bank={layer.spec.index: bank[:, :5]})
    wanted = [0.0] * N
    for query_head in reference.group(layer, 1):
        for at in range(5):
            row = reference.weights(layer, 1, bank[query_head, at], N + 50)
            wanted = [w + r / 10 for w, r in zip(wanted, row, strict=True)]
    torch.testing.assert_close(
        few.score(layer)[1].double(), torch.tensor(wanted).double(), atol=1e-6, rtol=1e-3
    )


def test_wrong_shapes_types_and_models_name_both_sides() -> None:
    """What was given and what the layer or the method wants."""
    layer = trace().layers[0]
    with pytest.raises(ValueError, match=r"keys of layer 1 have shape \(1, 90, 16\).*\[2, tokens, 16\]"):
        dataclasses.replace(layer, keys=layer.keys[:1])
    with pytest.raises(ValueError, match=r"values of layer 1 are torch.float64.*torch.float32"):
        dataclasses.replace(layer, values=layer.values.double())
    other = dataclasses.replace(trace(), model="another")
    with pytest.raises(ValueError, match=r"prepared for model tiny.*read by another"):
        ready("question_bank").memory(other, trace().full_bytes)
    memory = method("full").memory(other, trace().full_bytes)
    with pytest.raises(ValueError, match="belongs to model another"):
        tiny.backbone().logits([5], memory.as_cache())
    with pytest.raises(ValueError, match="allowed: full,"):
        method("magic")
    with pytest.raises(ValueError, match=r"snapkv: .*widow"):
        method("snapkv", widow=3)
    with pytest.raises(ValueError, match=r"keep: given 0.*at most 1"):
        budget_of(trace(), 0.0)


def test_a_method_in_one_file_works_with_everything_else() -> None:
    """What docs/cache-methods.md shows: a score, nothing more."""
    from dataclasses import dataclass

    from models.compared.base import ScoredMethod

    @dataclass(frozen=True, kw_only=True, slots=True)
    class LongValues(ScoredMethod):
        """Keeps the longest values."""

        def score(self, layer: LayerTrace) -> torch.Tensor:
            """See ScoredMethod.score."""
            return layer.values.float().norm(dim=-1)

    memory = LongValues().memory(trace(), budget_of(trace(), 0.2))
    assert memory.nbytes <= 0.2 * trace().full_bytes
    assert isinstance(trace().layers[0].spec.rotary, RotaryTable)


def test_the_full_cache_refuses_a_smaller_budget() -> None:
    """It throws nothing away."""
    with pytest.raises(ValueError, match=r"is less than the .* bytes of the full cache"):
        method("full").memory(trace(), trace().full_bytes - 1)


def test_attention_that_is_shared_by_one_layer_is_window_and_sinks() -> None:
    """Span 1: every layer keeps its own keys, at the full price of a pair."""
    kept = compressed("shared_attention", 0.5, span=1)
    plain = compressed("window_sinks", 0.5)
    assert [each.nbytes for each in kept] == [each.nbytes for each in plain]
    assert all(each.leader is None and not each.leads for each in kept)
    assert [chosen(each, 0) for each in kept] == [set(sinks_and_last(trace().layers[0], 4, 45).tolist())] * 2


def test_scores_are_worked_out_once_for_all_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second budget of the same method looks them up; other settings do not."""
    given, counted = read_exactly(tiny.backbone(), [1, *tiny.ids(40)]), []
    plain = KeyNorm.score
    monkeypatch.setattr(KeyNorm, "score", lambda self, layer: counted.append(1) or plain(self, layer))
    for budget in (0.5, 0.3):
        method("key_norm").memory(given, int(given.full_bytes * budget))
    assert len(counted) == len(given.layers)
    method("key_norm", sinks=6).memory(given, given.full_bytes // 2)
    assert len(counted) == 2 * len(given.layers)
