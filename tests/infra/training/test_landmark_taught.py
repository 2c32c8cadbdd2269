"""A landmark head taught by an embedder, in miniature: made queries, what a part holds, what is learned."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from infra.training.backbone_job import BackboneJob, build
from infra.training.backbone_loop import LoopConfig
from infra.training.landmark_data import LandmarkData, LandmarkDataConfig, save, save_corpus
from infra.training.landmark_queries import gap, made_of
from infra.training.landmark_taught import OF_A_PASSAGE, KnownVectors, Taught, make, reader_ids
from infra.training.learners.adapting import ForgivingTokenizer, forgiving_tokenizers, known_ids
from infra.training.learners.landmark_leaves import leaves
from infra.training.learners.landmark_pairs import CORPUS, judged_files, load_pairs, read_corpus
from infra.training.learners.landmark_spec import LandmarkSpec
from infra.training.learners.landmark_taught import TaughtLearner
from models.data_parallel import Group
from models.hf import loading
from models.hf.cut import CutTokenizer, cut_tokenizer
from models.landmark_mixer import LandmarkMixer, MixerConfig, spread_layers
from pipeline.errors import BadData
from tests.infra.training.learning_case import reader
from tests.infra.training.test_landmark import world

WIDTH = 24


def teacher(texts: list[str] | tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Bags of words along random directions: near where words are shared."""
    found = np.zeros((len(texts), WIDTH), np.float32)
    for at, text in enumerate(texts):
        for word in text.lower().replace(".", " ").replace(":", " ").split():
            seed = int.from_bytes(word.encode()[:8].ljust(8, b"-"), "little") % 2**31
            found[at] += np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Landmark data of the toy world with its corpus."""
    folder = tmp_path_factory.mktemp("taught")
    passages, questions = world()
    made = LandmarkData(
        passages, questions, LandmarkDataConfig(practice=4, sentences=60, passages=30, near=2)
    )
    save(made.train(), folder / "train.json.xz")
    save(made.judged("passage"), folder / "passages.json.xz")
    save_corpus(passages, questions, folder / CORPUS, ["when did it rain", questions[0].text])
    return folder


def spec_over(data: Path, folder: Path, **settings: Any) -> LandmarkSpec:
    """A spec over what the teacher gave, made first."""
    config = reader(folder)
    ids_of = reader_ids(Path(config.model))
    make(data, folder / "given", teacher, ids_of, passages=100, dim=8, most_tokens=90, seed=0)
    settings = {
        "layer": 1,
        "dim": 8,
        "questions": 6,
        "passages": 32,
        "dev_every": 0,
        "practice": 0.0,
    } | settings
    return LandmarkSpec(data=data, backbone=config, taught=folder / "given", **settings)


def learner_of(spec: LandmarkSpec, folder: Path) -> TaughtLearner:
    """Its learner on the CPU."""
    made = build(BackboneJob(kind="landmark", out=folder, spec=spec, loop=LoopConfig()), "cpu")
    assert isinstance(made, TaughtLearner)
    return made


def test_corpus_holds_no_page_and_no_question_of_the_test(data: Path) -> None:
    """Passages under test titles and test questions are absent, also where further questions name them."""
    corpus, asked = read_corpus(data / CORPUS)
    held_back = {f"Page {at}" for at in range(0, 40, 4)}
    assert len(corpus) == 30 and not {title for title, _ in corpus} & held_back
    _, questions = world()
    assert set(asked) == {q.text for q in questions if q.split == "train"} | {"when did it rain"}
    assert CORPUS not in [path.name for path in judged_files(data).values()]
    with pytest.raises(BadData, match="landmark_data"):
        read_corpus(data / "train.json.xz")


def test_made_queries_leave_out_what_they_ask_for() -> None:
    """A gap is a name or number of the sentence, asked for by a question word; other words stay in their order."""
    chance = random.Random(1)
    for _ in range(20):
        asked = gap("Kilns", "The old kiln of Ann Miller was built in 1790 by two masons", chance)
        when = asked.startswith(("when ", "what year "))
        assert ("1790" if when else "ann miller") not in asked.lower()
        assert asked.split()[0] in {"who", "what", "which", "where", "when"}
    text = "The town of Aren lies by a wide river. Its bridge was built in 1790 by two brothers."
    made = made_of("Aren", text, random.Random(0))
    assert made is not None
    assert made.passage == f"Aren: {text}" and made.sentence.removeprefix("Aren: ") in text
    assert made_of("Aren", "Too short.", random.Random(0)) is None
    assert made_of("Aren", text, random.Random(0)) == made


def test_taught_rows_are_those_of_the_texts(data: Path, tmp_path: Path) -> None:
    """Ids, vectors and places agree with passages, labelled texts and questions; made again nothing changes."""
    spec = spec_over(data, tmp_path)
    assert spec.taught is not None
    taught = Taught.load(spec.taught)
    train = load_pairs(data / "train.json.xz")
    assert (taught.passages, taught.labelled, taught.asked) == (30, len(train.texts), 31)
    assert len(taught.vectors) == OF_A_PASSAGE * 30 + len(train.texts) + 31 == len(taught.starts) - 1
    ids_of = reader_ids(Path(spec.backbone.model))
    at = taught.first_labelled + 3
    assert taught.row(at) == ids_of([train.texts[3]])[0][:90]
    assert np.allclose(taught.vectors[at], teacher([train.texts[3]])[0], atol=1e-3)
    before = (spec.taught / "ids.npy").stat().st_mtime_ns
    make(data, spec.taught, teacher, ids_of, passages=100, dim=8, most_tokens=90, seed=0)
    assert (spec.taught / "ids.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="landmark_taught --help"):
        Taught.load(tmp_path)


def test_known_vectors_are_looked_up_in_any_order(data: Path, tmp_path: Path) -> None:
    """What judging asks an embedder for is there without one."""
    spec = spec_over(data, tmp_path)
    assert spec.taught is not None
    judged = {name: load_pairs(path) for name, path in judged_files(data).items()}
    train = load_pairs(data / "train.json.xz")
    known = KnownVectors(spec.taught, judged, train.texts)
    some = [judged["passages"].texts[5], train.texts[0], judged["passages"].texts[1]]
    assert np.allclose(known(some), teacher(some), atol=1e-3)
    with pytest.raises(KeyError):
        known(["never embedded"])


def test_tokens_that_a_cut_vocabulary_lacks_are_left_out(tmp_path: Path) -> None:
    """One text or many at once give the same ids, without what was cut; a backbone would refuse the text."""
    folder = Path(reader(tmp_path).model)
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lacking = whole.token_to_id("z")
    kept = [i for i in range(whole.get_vocab_size()) if i != lacking]
    np.save(folder / "vocabulary.npy", np.array(kept, np.int32))
    texts = ["a zebra", "no stripe", "zz"]
    many = reader_ids(folder)(texts)
    cut = cut_tokenizer(folder, whole)
    assert many == [known_ids(cut, text) for text in texts]
    assert [cut.decode(row) for row in many] == ["a ebra", "no stripe", ""]
    with pytest.raises(ValueError, match="lacks"):
        cut.encode("a zebra")
    before = ForgivingTokenizer.lost
    with forgiving_tokenizers():
        forgiving = loading._tokenizer(folder)
        assert forgiving.encode("a zebra", add_special_tokens=False).ids == many[0]
    assert ForgivingTokenizer.lost == before + 1
    assert type(loading._tokenizer(folder)) is CutTokenizer


def test_leaves_hold_every_row_once_and_near_ones_together() -> None:
    """A partition, other for another seed; rows of a leaf are nearer to each other than rows at large."""
    chance = np.random.default_rng(0)
    middles = chance.standard_normal((20, 16))
    vectors = np.repeat(middles, 16, 0) + 0.1 * chance.standard_normal((320, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    made = leaves(vectors, 16, [0, 0])
    assert sorted(np.concatenate(made).tolist()) == list(range(320))
    assert all(8 <= len(leaf) <= 16 for leaf in made)
    inside = np.mean([(vectors[leaf] @ vectors[leaf].T).mean() for leaf in made])
    assert inside > 0.5 + float((vectors @ vectors.T).mean())
    assert [a.tolist() for a in leaves(vectors, 16, [0, 1])] != [a.tolist() for a in made]
    with pytest.raises(ValueError, match="size"):
        leaves(vectors, 0, [0])


def test_a_part_hangs_on_its_number_and_golds_hold_the_answer(data: Path, tmp_path: Path) -> None:
    """The same number gives the same part; a labelled question's known text is its own."""
    learner = learner_of(spec_over(data, tmp_path), tmp_path)
    one, again, other = (next(learner.parts([n])) for n in (4, 4, 5))
    assert one == again and one != other
    taught = learner._taught
    golds = {(asked, gold) for asked, gold, _ in learner.train.questions}
    labelled = [at for at, trust in enumerate(one.trust) if trust == learner.spec.trust_labels]
    assert len(labelled) == 6
    for at in labelled:
        asked = one.queries[at] - taught.first_labelled
        assert {(asked, one.texts[own] - taught.first_labelled) for own in one.golds[at]} <= golds
    for at, query in enumerate(one.queries):
        if query >= taught.first_asked:
            assert one.golds[at] == [] and one.trust[at] == 0.0
        elif query < taught.first_labelled:
            passage = query // OF_A_PASSAGE
            assert {one.texts[own] // OF_A_PASSAGE for own in one.golds[at]} == {passage}


@pytest.mark.parametrize("method", ["frozen", "lora", "mixer"])
def test_teaching_brings_vectors_to_the_teacher_s(data: Path, tmp_path: Path, method: str) -> None:
    """Both terms fall, every trained parameter has a gradient, and a state that was saved goes on alike."""
    settings: dict[str, Any] = {"method": method, "lr": 1e-2, "steps": 12, "rank": 4, "inner": 64}
    spec = spec_over(data, tmp_path, **settings)
    learner = learner_of(spec, tmp_path)
    rows = []
    for step in range(12):
        loss, terms, count = learner.loss(next(learner.parts([step])), step, step / 12)
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learner.parameters)
        learner.update(step, step / 12, Group())
        rows.append({name: float(value.detach()) for name, value in terms.items()})
        assert count > 0
    assert np.mean([r["direct"] for r in rows[-3:]]) < np.mean([r["direct"] for r in rows[:3]]) - 0.02
    assert np.mean([r["ranked"] for r in rows[-3:]]) < np.mean([r["ranked"] for r in rows[:3]])
    again = learner_of(spec, tmp_path)
    again.load(learner.state())
    part = next(learner.parts([12]))
    with torch.no_grad():
        assert float(learner.loss(part, 12, 1.0)[0]) == pytest.approx(
            float(again.loss(part, 12, 1.0)[0]), rel=1e-5
        )
    about: dict[str, Any] = {}
    paths = learner.write(tmp_path / "model", about)
    assert {"minilm_recall_5", "int8_recall_5", "fused_ours_recall_5", "bm25_recall_5"} <= about.keys()
    assert ("landmark_mixer.safetensors" in [path.name for path in paths]) == (method == "mixer")


def test_taught_by_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    """Another width, or other labelled texts, are named with what to do."""
    spec = spec_over(data, tmp_path)
    with pytest.raises(ValueError, match="dim: given 16"):
        learner_of(replace(spec, dim=16), tmp_path)
    with pytest.raises(ValueError, match="trust_made"):
        replace(spec, trust_made=1.5)


def test_mixer_reads_a_text_by_itself_and_comes_back_from_its_file(tmp_path: Path) -> None:
    """A longer neighbour changes nothing, later tokens do; saved in bf16 it gives the same to 2%."""
    torch.manual_seed(0)
    mixer = LandmarkMixer(MixerConfig(width=12, layers=(0, 2), inner=16, heads=2)).eval()
    states = [torch.randn(2, 7, 12) for _ in range(2)]
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    both = mixer(states, mask)
    alone = mixer([each[:1, :4] for each in states], mask[:1, :4])
    assert torch.allclose(both[0, :4], alone[0], atol=1e-5)
    changed = [each.clone() for each in states]
    changed[1][0, 3] += 1.0
    assert not torch.allclose(mixer(changed, mask)[0, 0], both[0, 0], atol=1e-4)
    mixer.save(tmp_path)
    kept = LandmarkMixer.load(tmp_path)
    assert kept.config == mixer.config
    assert float((kept(states, mask) - both).abs().max()) < 0.02 * float(both.abs().max())
    with pytest.raises(ValueError, match="layers"):
        mixer(states[:1], mask)
    with pytest.raises(ValueError, match="does not exist"):
        LandmarkMixer.load(tmp_path / "nowhere")
    assert spread_layers(12) == (3, 8, 12) and spread_layers(0) == (0,)
