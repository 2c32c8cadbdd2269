"""A trained backbone goes on while the contrastive loss fades away, in miniature."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.training import subq_fade, subq_fade_page
from infra.training.subq_data import SubqData
from models.subq import SubqModel
from models.subq.checkpoint import load_checkpoint, save_checkpoint
from models.subq.losses import LossWeights
from models.subq.tokenizer import SubqTokenizer
from tests.infra.training.subq_case import MODEL, small_data
from tests.infra.training.token_files import packed


def checkpoint(folder: Path, tokenizer: SubqTokenizer) -> Path:
    """A model as a run leaves it."""
    torch.manual_seed(0)
    save_checkpoint(SubqModel(MODEL), folder, tokenizer=tokenizer, storage="float32", about={"seed": 0})
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Both arms over a toy; the folder, and the options."""
    folder = tmp_path_factory.mktemp("fade")
    told = [
        "--data", str(packed(folder / "data")), "--work", str(folder / "work"), "--out", str(folder / "out"),
        "--checkpoint", str(checkpoint(folder / "begun", small_data().tokenizer)), "--device", "cpu", "--tiny",
        "--steps", "5", "--train-seconds", "500", "--seconds", "1000", "--warmup", "1", "--lengths", "8k",
        "--cells", "known-5", "--trials", "2", "--seed", "4", "--bring", "kept",
    ]  # fmt: skip
    assert subq_fade.main(told) == 0
    return folder, told


def test_both_arms_go_on_from_the_checkpoint_with_the_same_batches(done: tuple[Path, list[str]]) -> None:
    """The first step of both has the same terms; its loss has the contrastive one whole. Then one is without it."""
    folder, _ = done
    found = json.loads((folder / "out" / "fade-4.json").read_text())["arms"]
    fade, kept = found["fade"]["curve"], found["kept"]["curve"]
    assert [len(fade), len(kept)] == [5, 5] and found["fade"]["done"] and found["kept"]["done"]
    for term in ("language", "answers", "contrastive", "loss"):
        assert fade[0][term] == kept[0][term]
    for row, weight in ((fade[0], 1.0), (fade[1], 0.5), (fade[2], 0.0), (fade[4], 0.0), (kept[4], 1.0)):
        assert weighed(row) == pytest.approx(weight, abs=2e-3)
    begun, _ = load_checkpoint(folder / "begun")
    for arm in ("fade", "kept"):
        model, described = load_checkpoint(folder / "work" / f"{arm}-4")
        assert described["about"]["from"] == "begun" and model.config == begun.config
        assert described["storage"] == "int8" and described["about"]["begun_with"] == {"seed": 0}
    fade, kept = (load_checkpoint(folder / "work" / f"{arm}-4")[0] for arm in ("fade", "kept"))
    assert any(not a.equal(b) for a, b in zip(fade.parameters(), kept.parameters(), strict=True))


def test_only_the_weights_that_are_wanted_come_home_and_they_are_the_judged_ones(
    done: tuple[Path, list[str]],
) -> None:
    """In 8 bits, in files that a call brings back, with where they come from; of the other arm nothing."""
    folder, _ = done
    brought, judged = folder / "out" / "kept-4-int8", folder / "work" / "kept-4"
    for path in judged.iterdir():
        assert (brought / path.name).read_bytes() == path.read_bytes()
    about = json.loads((brought / "config.json").read_text())["about"]
    assert (about["arm"], about["steps"], about["from"]) == ("kept", 5, "begun")
    assert [path.name for path in (folder / "out").glob("*-int8")] == ["kept-4-int8"]


def weighed(row: dict[str, float]) -> float:
    """How much of the contrastive term is in the loss, by the other terms' weights."""
    from models.subq.losses import LossTerms, LossWeights

    weights = LossWeights()
    terms = {name: torch.tensor(row[name]) for name in LossTerms._fields}
    without = float(LossTerms(**(terms | {"contrastive": torch.tensor(0.0)})).total(weights))
    return (row["loss"] - without) / (weights.contrastive * row["contrastive"])


def test_needles_are_asked_before_and_after(done: tuple[Path, list[str]]) -> None:
    """The same cells and trials for all three, each under its name."""
    folder, _ = done
    asked = [
        json.loads((folder / "out" / f"needles-{arm}-4.json").read_text())
        for arm in ("before", "fade", "kept")
    ]
    assert all(each["done"] for each in asked)
    assert [[(row["cell"], row["length"]) for row in each["rows"]] for each in asked] == [
        [("known-5", 8_192)]
    ] * 3


def test_the_page_sets_the_arms_side_by_side(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Every arm's curve and needles by name, with the run's own figures; a folder without a run is refused."""
    folder, _ = done
    subq_fade_page.main(["--found", str(folder / "out"), "--bench", str(tmp_path / "made"), "--note", "Why."])
    result = json.loads((tmp_path / "made.json").read_text())
    asked = json.loads((folder / "out" / "needles-fade-4.json").read_text())
    assert result["ratios"]["fade_fade_exact_known_8k"] == asked["rows"][0]["exact"]
    nats = asked["language"]
    assert result["ratios"]["fade_fade_gain_of_reading"] == pytest.approx(
        nats["without"] - nats["with_retrieval"], abs=1e-4
    )
    text = (tmp_path / "made.md").read_text()
    assert "| faded | 5 |" in text and "| kept | 5 |" in text and "| known-5 | 8k | 2 |" in text
    assert text.endswith("Why.\n") and "cut off" not in text
    rows = [
        {"cell": "known-5", "length": 8_192, "exact": 50.0}, {"cell": "known-16", "length": 8_192, "exact": 100.0},
        {"cell": "heldout-forms-16-alone", "length": 8_192, "exact": 25.0},
    ]  # fmt: skip
    named = subq_fade_page.ratios({"needles": {"kept": rows}, "language": {"kept": {}}})
    assert named == {"fade_kept_exact_known_8k": 75.0, "fade_kept_exact_heldout_forms_alone_8k": 25.0}
    assert "Answered wrong" in text and "| known | 8k | 2 |" in text
    with pytest.raises(ValueError, match=r"holds no fade-SEED\.json"):
        subq_fade_page.found_in(tmp_path)


def test_wrong_answers_are_told_needle_by_needle_against_before() -> None:
    """As many wrong as before may be others: keys 5 and 16 lose one each, and 5 gains one."""

    def row(cell: str, *missed: int, trials: int = 4) -> dict[str, object]:
        return {"cell": cell, "length": 8_192, "n": trials, "misses": [{"trial": trial} for trial in missed]}

    needles = {
        "before": [row("known-5", 1), row("known-16"), row("heldout-10", 0)],
        "kept": [row("known-5", 2), row("known-16", 1), row("heldout-10", 0, trials=8)],
    }
    counted = subq_fade_page.wrong({"needles": needles})
    assert counted["known", 8_192, "kept"] == {"n": 8, "wrong": 2, "mended": 1, "broken": 2}
    assert counted["known", 8_192, "before"] == {"n": 8, "wrong": 1, "mended": 0, "broken": 0}
    assert ("heldout", 8_192, "kept") not in counted, "asked more needles than before"


def test_a_second_start_trains_nothing_again(
    done: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms that are done are passed over; without time nothing is begun, and the exit code tells."""
    _, told = done

    def none(*_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(subq_fade, "trainer_of", none)
    assert subq_fade.main(told) == 0
    assert subq_fade.main([*told, "--seconds", "1"]) == 1


def test_an_arm_cut_by_the_time_goes_on(
    done: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is there, the exit code says that it is not all, and the next start ends it."""
    folder, told = done
    again = [str(tmp_path / "work") if each == str(folder / "work") else each for each in told]
    again = [str(tmp_path / "out") if each == str(folder / "out") else each for each in again]
    with monkeypatch.context() as patch:
        whole_run = subq_fade.SubqTrainer.run
        patch.setattr(subq_fade.SubqTrainer, "run", lambda self, until_s: whole_run(self, 0.0))
        assert subq_fade.main([*again, "--arms", "fade"]) == 1
    assert json.loads((tmp_path / "out" / "fade-4.json").read_text())["arms"]["fade"]["steps"] == 1
    shutil.rmtree(tmp_path / "out")
    assert subq_fade.main([*again, "--arms", "fade"]) == 0
    curve = json.loads((tmp_path / "out" / "fade-4.json").read_text())["arms"]["fade"]["curve"]
    whole = json.loads((folder / "out" / "fade-4.json").read_text())["arms"]["fade"]["curve"]
    assert [row["loss"] for row in curve] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def test_harder_needles_are_more_alike_and_the_term_weighs_what_is_said(
    done: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Arms of harder needles differ from `kept` in these alone; all have the weight that was given."""
    _, told = done
    given = subq_fade._parser().parse_args([*told, "--work", str(tmp_path), "--contrastive", "0.1"])
    data = small_data()
    kept, alike, namesakes = (
        subq_fade.trainer_of(given, arm, data) for arm in ("kept", "alike", "namesakes")
    )
    assert alike.stream == replace(kept.stream, twins=0.8, kinds_alike=0.8, alike=0.7)
    assert namesakes.stream == replace(kept.stream, twins_alike=1.0)
    assert (kept.stream.twins, kept.config, kept.config) == (0.5, alike.config, namesakes.config)
    assert kept.config.losses.contrastive == pytest.approx(0.1 * LossWeights().contrastive)


def test_an_arm_without_an_end_is_refused(done: tuple[Path, list[str]]) -> None:
    """Neither updates nor seconds would end it."""
    _, told = done
    with pytest.raises(SystemExit, match="--steps, --train-seconds: given 0, 0; allowed: one above 0"):
        subq_fade.main([*told, "--steps", "0", "--train-seconds", "0"])


def test_data_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Its ids would mean other words."""
    other = SubqTokenizer.train(["ka ke ki ko ku " * 200], 300)
    data = small_data()
    with pytest.raises(ValueError, match="another tokenizer"):
        subq_fade.fitting(
            SubqData(data.tokens, data.tokenizer, data.names, data.grammar), checkpoint(tmp_path / "o", other)
        )
