"""Landmark data, learner and GPU script in miniature: what tells is found, nothing of the test is trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from infra.training import landmark_gpu
from infra.training.backbone_job import BackboneJob, build
from infra.training.backbone_loop import LoopConfig
from infra.training.landmark_data import LandmarkData, LandmarkDataConfig, save
from infra.training.learners.landmark import LandmarkLearner, LandmarkSpec
from infra.training.learners.landmark_pairs import Pairs, load_pairs
from infra.training.learners.landmark_peers import Ranking, in_8_bits
from models.data_parallel import Group
from models.hf import HfConfig
from models.hf.landmark_head import LandmarkHead
from pipeline.errors import BadData
from pipeline.tasks.qa import Question, SourceText
from tests.infra.training.learning_case import NAMES, reader

THINGS = ("kiln", "lute", "mast", "oar", "plum", "quill", "rope", "sled")


def world(count: int = 40) -> tuple[dict[str, SourceText], list[Question]]:
    """Pages about people, and who owns what, asked of training and test pages."""
    chance = random.Random(0)
    passages, questions = {}, []
    for at in range(count):
        who, thing = f"{chance.choice(NAMES)}{at}", chance.choice(THINGS)
        text = f"{who} lives in a house by the river. {who} owns the old {thing} there. The river is long and wide."
        passages[f"p{at}"] = SourceText(text_id=f"p{at}", title=f"Page {at}", text=text)
        questions.append(
            Question(
                question_id=f"q{at}", dataset="toy", text=f"what does {who} own", answers=(thing,), answerable=True,
                gold_ids=(f"p{at}",), titles=(f"Page {at}",), split="test" if at % 4 == 0 else "train",
            )
        )  # fmt: skip
    return passages, questions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files of it."""
    folder = tmp_path_factory.mktemp("landmark")
    made = LandmarkData(*world(), LandmarkDataConfig(practice=10, sentences=100, passages=30, near=2))
    save(made.train(), folder / "train.json.xz")
    save(made.judged("sentence"), folder / "sentences.json.xz")
    save(made.judged("passage"), folder / "passages.json.xz")
    return folder


def test_training_reads_no_text_under_a_test_title(data: Path) -> None:
    """Every test page is absent; golds hold the answer, near texts do not; practice is asked of its own page."""
    train = load_pairs(data / "train.json.xz")
    held_back = {f"Page {at}:" for at in range(0, 40, 4)}
    assert not [text for text in train.texts if any(text.startswith(title) for title in held_back)]
    assert {g: train.groups.count(g) for g in set(train.groups)} == {"toy": 30, "practice": 10}
    _, questions = world()
    answers = {question.text: question.answers[0] for question in questions}
    for (asked, gold, near), group in zip(train.questions, train.groups, strict=True):
        if group == "toy":
            assert answers[train.texts[asked]] in train.texts[gold]
            assert not any(answers[train.texts[asked]] in train.texts[at] for at in near)
        else:
            assert train.texts[asked] not in train.texts[gold]
    assert len(train.with_practice(0.0, 0).questions) == 30


def test_judged_texts_and_places_are_written_down(data: Path) -> None:
    """A corpus of sentences, no question among what is searched, BM25 finds the telling sentence first."""
    pairs = load_pairs(data / "sentences.json.xz")
    assert len(pairs.questions) == 10
    assert len(pairs.searched()) == len(pairs.texts) - 10
    assert [best[0] for best in pairs.lexical] == [gold for _, gold, _ in pairs.questions]
    written, computed = Ranking(pairs, torch.device("cpu")), Ranking(
        Pairs(pairs.texts, pairs.questions), torch.device("cpu")
    )  # fmt: skip
    assert torch.equal(written.lexical(), computed.lexical())
    assert written.recalls((1,)) == {"bm25_recall_1": 1.0}
    assert written.by_group((1,)) == {"toy": {"n": 10, "bm25_recall_1": 1.0}}


def test_damaged_pairs_are_refused(data: Path, tmp_path: Path) -> None:
    """A file that was cut off is named with what makes a new one."""
    path = tmp_path / "train.json.xz"
    path.write_bytes((data / "train.json.xz").read_bytes()[:200])
    with pytest.raises(BadData, match="landmark_data"):
        load_pairs(path)


def test_ranks_count_from_the_best_and_fusion_joins_them() -> None:
    """Gold second by one method and first by another: reciprocal ranks, summed, put it first."""
    pairs = Pairs(("q", "a", "b", "c"), ((0, 2, ()),))
    ranking = Ranking(pairs, torch.device("cpu"))
    first = ranking.add("one", torch.tensor([[3.0, 2.0, 1.0]]))
    second = ranking.add("two", torch.tensor([[0.0, 2.0, 1.0]]))
    assert first.tolist() == [[0, 1, 2]] and second.tolist() == [[2, 0, 1]]
    ranking.fuse("both", first, second)
    assert ranking.found["both"].tolist() == [0]
    assert ranking.recalls((1, 2)) == {
        "one_recall_1": 0.0, "one_recall_2": 1.0, "two_recall_1": 1.0, "two_recall_2": 1.0,
        "both_recall_1": 1.0, "both_recall_2": 1.0,
    }  # fmt: skip


def test_8_bits_keep_directions() -> None:
    """Every vector is within half a step of itself."""
    vectors = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    kept = in_8_bits(vectors)
    assert float((kept - vectors).abs().max()) <= float(vectors.abs().max()) / 254 + 1e-6
    assert not torch.equal(kept, vectors)


@pytest.mark.parametrize("method", ["frozen", "lora"])
def test_learner_hears_no_layer_above_its_own(data: Path, tmp_path: Path, method: str) -> None:
    """The decoder ends at the head's layer, and hidden states are those of the whole one."""
    config = reader(tmp_path)
    spec = LandmarkSpec(data=data, backbone=config, method=method, layer=1, dim=8, questions=4)
    learner = build(BackboneJob(kind="landmark", out=tmp_path, spec=spec, loop=LoopConfig()), "cpu")
    assert isinstance(learner, LandmarkLearner)
    from models.hf import HfBackbone
    from models.hf.landmark_head import hidden_of

    backbone = HfBackbone.load(config)
    ids = backbone.encode("Ann owns a kiln")
    mine = learner._encoder.encode([ids])[0]
    whole = hidden_of(backbone, [*backbone.bos, *ids], 1)[len(backbone.bos) :]
    assert torch.allclose(mine, whole, atol=1e-4)
    part = next(learner.parts([0]))
    loss, _, _ = learner.loss(part, 0, 0.0)
    loss.backward()
    assert all(p.grad is not None for p in learner.head.parameters())
    adapted = [p for p in learner.model.parameters() if p.requires_grad]
    assert bool(adapted) == (method == "lora")
    assert all(p.grad is not None for p in adapted)


def test_best_update_by_questions_kept_back_is_written(data: Path, tmp_path: Path) -> None:
    """Questions kept back are not trained on; the weights of the best look are written, also after a stop."""
    train = load_pairs(data / "train.json.xz")
    kept, held = train.split(0.5, 0, least=3)
    assert len(kept.questions) + len(held.questions) == len(train.questions)
    assert not {question for question, _, _ in kept.questions} & {
        question for question, _, _ in held.questions
    }
    assert "practice" not in held.groups and kept.groups.count("practice") == 10
    assert train.split(0.5, 0, least=1000)[1].questions == ()
    spec = LandmarkSpec(data=data, backbone=reader(tmp_path), layer=1, dim=8, questions=4, dev_every=1)
    learner = build(BackboneJob(kind="landmark", out=tmp_path, spec=spec, loop=LoopConfig()), "cpu")
    assert isinstance(learner, LandmarkLearner)
    learner.train, learner.dev = kept, held
    looks = iter([0.2, 0.6, 0.4])
    learner.dev_recall = lambda *_, **__: next(looks)  # type: ignore[method-assign]
    seen = []
    for step in range(3):
        loss, _, _ = learner.loss(next(learner.parts([step])), step, 0.0)
        loss.backward()
        assert "dev_recall_5" in learner.update(step, 0.0, Group())
        seen.append(learner.head.map["chunk"].weight.detach().clone())  # type: ignore[union-attr]
    again = build(BackboneJob(kind="landmark", out=tmp_path, spec=spec, loop=LoopConfig()), "cpu")
    assert isinstance(again, LandmarkLearner)
    again.load(learner.state())
    about: dict[str, float] = {}
    again.write(tmp_path / "model", about)
    assert about["dev_recall_5"] == 0.6
    saved = LandmarkHead.load(tmp_path / "model").map["chunk"].weight  # type: ignore[union-attr]
    assert torch.equal(saved, seen[1]) and not torch.equal(saved, seen[2])


def test_other_telling_texts_of_a_question_are_not_wrong(data: Path, tmp_path: Path) -> None:
    """A question asked twice for two texts costs nothing against the other one; against a stranger it does."""
    config = reader(tmp_path)
    spec = LandmarkSpec(data=data, backbone=config, layer=1, dim=8, questions=2, hard=0)
    learner = build(BackboneJob(kind="landmark", out=tmp_path, spec=spec, loop=LoopConfig()), "cpu")
    assert isinstance(learner, LandmarkLearner)
    (one, gold, _), (_, other, _) = learner.train.questions[:2]
    alike, _, _ = learner.loss([(one, gold, ()), (one, other, ())], 0, 0.0)
    apart, _, _ = learner.loss([(one, gold, ()), (learner.train.questions[1][0], other, ())], 0, 0.0)
    assert float(alike.detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(apart.detach()) > 0.01


def test_gpu_script_trains_judges_and_gathers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs leave heads, cards and figures by corpus and set; the telling text is found beyond chance."""
    config: HfConfig = reader(tmp_path)
    monkeypatch.setattr(landmark_gpu, "embedder", lambda: "")
    told = [
        "--data", str(data), "--reader", str(config.model), "--work", str(tmp_path / "work"),
        "--out", str(tmp_path / "out"), "--device", "cpu", "--steps", "60", "--questions", "20",
        "--runs", "frozen_labels",
    ]  # fmt: skip
    assert landmark_gpu.main([*told, "--run", "frozen_labels", "--training", "100"]) == 0
    given = landmark_gpu._parser().parse_args(told)
    assert landmark_gpu.gather(given, {"frozen_labels": 0}) == 0
    found = json.loads((tmp_path / "out" / "landmark.json").read_text())["frozen_labels"]
    assert set(found["judged"]) == {"sentences", "passages"}
    ours = found["judged"]["passages"]
    assert ours["sets"]["toy"]["n"] == 10
    assert ours["all"]["searched"] == 30
    assert ours["all"]["recall_5"] > 5 / 30
    assert (tmp_path / "out" / "landmark-frozen_labels.tar").stat().st_size > 1000
