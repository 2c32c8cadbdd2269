"""Learning verbs over damaged, foreign and crowded files: one sentence, an exit code, nothing overwritten."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.cli import app, build
from infra.console import run_command
from infra.out_folder import alone_in
from infra.registry import Registry
from infra.tracking import TrackingConfig
from models.retriever import PolicyNetwork, save_policy
from pipeline.tasks.material import Material
from rl.episodes import Readings, fingerprint
from tests.infra.training.token_files import packed
from tests.rl.toy import KnowingReader, material, network_config, tables

USAGE, BAD = 2, 4


@pytest.fixture(scope="module", autouse=True)
def _verbs() -> None:
    build()


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No database is made for what is not about it."""
    monkeypatch.setenv("DYSRA_TRACKING_ENABLED", "false")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and what the last line says."""
    code = run_command(app, [*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def toy(folder: Path, count: int = 24) -> Path:
    """A folder of material."""
    material(tables(count)).save(folder, {})
    return folder


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (path,) = folder.glob(name)
        path.write_bytes(path.read_bytes()[:60])

    return cut


def _put(name: str, data: bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return put


def _packed_questions(folder: Path) -> None:
    (folder / "questions.jsonl").unlink()
    (folder / "questions.jsonl.xz").write_bytes(b"no archive")


def _without_tables(folder: Path) -> None:
    np.savez(folder / "arrays.npz", other=np.zeros(3))


MATERIAL = [
    (_cut("arrays.npz"), "damaged"),
    (_cut("questions.jsonl"), "do not fit"),
    (_put("questions.jsonl", b"\xff\xfe"), "damaged"),
    (_put("manifest.json", b"{"), "damaged"),
    (_packed_questions, "damaged"),
    (_without_tables, "damaged"),
]


@pytest.mark.parametrize(("damage", "said"), MATERIAL)
def test_damaged_material_is_told_by_its_folder(
    damage: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short, in another encoding, or without its tables: exit code 4 and the folder's name."""
    damage(toy(tmp_path / "material"))
    code, told = call(
        capsys, "train-retriever", "--data", str(tmp_path / "material"), "--algorithm", "supervised",
        "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"),
    )  # fmt: skip
    assert code == BAD, told
    assert said in told["error"] and str(tmp_path / "material") in told["error"]
    assert not (tmp_path / "out").exists()


TOKENS = [
    (_put("train-0.bin.xz", b"no archive"), BAD, "damaged"),
    (_put("train-0.bin.xz", lzma.compress(b"\xff\xff" * 3000)), BAD, "another tokenizer"),
    (_put("names.json", b"{"), BAD, "damaged"),
    (_put("names.json", b"{}"), BAD, "damaged"),
    (_put("tokenizer.json", b'{"a": 1}'), USAGE, "no tokenizer"),
    (_put("real.json.xz", b"no archive"), BAD, "damaged"),
]


@pytest.mark.parametrize(("damage", "code", "said"), TOKENS)
def test_damaged_token_files_are_told(
    damage: Callable[[Path], None], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file of a folder of tokens, damaged or of another tokenizer."""
    folder = packed(tmp_path / "data")
    damage(folder)
    found, told = call(
        capsys, "train-backbone", "--data", str(folder), "--tiny", "--steps", "1", "--workers", "0",
        "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"),
    )  # fmt: skip
    assert found == code, told
    assert said in told["error"]


OUT, STATE = ("--out", "{tmp}/out"), ("--state", "{tmp}/state")
BEFORE = {
    "train-retriever": ("--data", "{tmp}/toy", "--algorithm", "supervised", *OUT, *STATE),
    "train-backbone": ("--data", "{tmp}/toy", *OUT, *STATE),
    "co-train": ("--data", "{tmp}/toy", *OUT, *STATE),
    "prepare": ("--worlds", "1", *OUT),
    "evaluate": ("--task", "qa", "--method", "bm25", "--data", "{tmp}/file"),
    "models promote": ("--data", "{tmp}/toy", "--version", "1", *STATE),
}
WRONG = [
    ("train-retriever", ("--seed", "-1"), "greater than or equal to 0"),
    ("train-backbone", ("--seed", str(1 << 32)), "less than or equal to 4294967295"),
    ("train-backbone", ("--lr", "nan"), "--lr"),
    ("train-backbone", ("--minutes", "nan"), "--minutes"),
    ("train-backbone", ("--losses", "tokens=nan"), "a number"),
    ("train-retriever", ("--questions", "0"), "1 or more"),
    ("train-retriever", ("--train", "-1"), "0 or more"),
    ("train-retriever", ("--data", "{tmp}/wide"), "vectors of 8 with 3 features and vectors of 10"),
    ("train-retriever", ("--out", "{tmp}/file"), "a file stands where a folder is needed"),
    ("models promote", ("--state", "{tmp}/file"), "a file stands where a folder is needed"),
    ("co-train", ("--lr", "0"), "above 0"),
    ("co-train", ("--policy-minutes", "0"), "above 0"),
    ("co-train", ("--labels", "-1"), "0 (off) or more"),
    ("co-train", ("--policy", "{tmp}/policy"), "knows vectors of 10, the material has 8"),
    ("train-retriever", ("--begin-with", "{tmp}/policy"), "knows vectors of 10, the material has 8"),
    ("train-retriever", ("--gamma", "nan"), "at least 0"),
    ("prepare", ("--config", "{tmp}/none.yaml"), "none.yaml"),
    ("prepare", ("--workers", "-1"), "--workers"),
    ("evaluate", ("--config", "{tmp}/none.yaml"), "none.yaml"),
    ("models promote", ("--budget", "0"), "8 tokens"),
    ("models promote", ("--limit", "-3"), "0 (all)"),
]


@pytest.mark.parametrize(("name", "given", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_values_are_refused_before_anything_is_done(
    name: str, given: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers that no run can use, files where folders are needed, a configuration that is not there."""
    (tmp_path / "file").write_text("text\n")
    toy(tmp_path / "toy")
    made = material(tables(8))
    grown = {"query": [(0, 0), (0, 2)], "vectors": [(0, 0), (0, 0), (0, 2)]}
    arrays = made.tables.arrays()
    wide = arrays | {part: np.pad(arrays[part], by) for part, by in grown.items()}
    Material(made.questions, type(made.tables)(**wide)).save(tmp_path / "wide", {})
    save_policy(PolicyNetwork(network_config(dim=10)), tmp_path / "policy", {})
    filled = [each.replace("{tmp}", str(tmp_path)) for each in (*BEFORE[name], *given)]
    code, told = call(capsys, *name.split(), *filled)
    assert code == USAGE, told
    assert said in told["error"]
    assert not (tmp_path / "out" / "policy.safetensors").exists()


def train(tmp_path: Path, out: Path, *more: str) -> tuple[str, ...]:
    """A short training on the toy."""
    if not (tmp_path / "toy").exists():
        toy(tmp_path / "toy")
    return (
        "train-retriever", "--data", str(tmp_path / "toy"), "--algorithm", "supervised", "--warm-steps", "1",
        "--out", str(out), "--state", str(tmp_path / "state"), *more,
    )  # fmt: skip


def test_a_policy_is_not_written_over_another_model_or_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A decoder's folder, parts of another policy, a policy of another seed: refused, files as they were."""
    out = tmp_path / "decoder"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "gemma3"}')
    code, told = call(capsys, *train(tmp_path, out))
    assert (code, "no policy" in told["error"]) == (USAGE, True), told
    assert [path.name for path in out.iterdir()] == ["config.json"]

    out = tmp_path / "shipped"
    (out / "pair-reader").mkdir(parents=True)
    code, told = call(capsys, *train(tmp_path, out))
    assert (code, "pair-reader" in told["error"]) == (USAGE, True), told

    out = tmp_path / "policy"
    code, told = call(capsys, *train(tmp_path, out, "--seed", "1"))
    assert code == 0, told
    before = (out / "policy.safetensors").read_bytes()
    code, told = call(capsys, *train(tmp_path, out, "--seed", "2"))
    assert (code, "seed was 1, is 2" in told["error"]) == (USAGE, True), told
    code, told = call(capsys, *train(tmp_path, out, "--seed", "1"))
    assert code == 0, told
    assert (out / "policy.safetensors").read_bytes() == before


def test_prepare_refuses_what_it_would_mix_or_make_nothing_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without texts, one given twice, a folder of material: refused, and the material's own note stays."""
    (tmp_path / "none.jsonl").write_text("\n")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"id": str(at), "text": "news " * 40}) + "\n" for at in range(8)))
    note = toy(tmp_path / "material") / "manifest.json"
    before = note.read_bytes()
    base = ("prepare", "--workers", "0", "--needles", "0", "--vocabulary", "300")
    for given, out, code, said in (
        (("--texts", str(tmp_path / "none.jsonl")), "out", BAD, "holds no text"),
        (("--texts", str(texts), "--texts", str(texts)), "out", USAGE, "given twice"),
        (("--texts", str(texts)), "material", USAGE, "something else"),
    ):
        found, told = call(capsys, *base, *given, "--out", str(tmp_path / out))
        assert (found, said in told["error"]) == (code, True), told
    assert note.read_bytes() == before and not (tmp_path / "out").exists()


def test_readings_that_are_damaged_or_of_other_questions_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No archive, cut short, another archive, another material's: exit code 4 with the file's name."""
    made = Material.load(toy(tmp_path / "toy"))
    known = Readings(KnowingReader(made.tables), fingerprint(made))
    known.read([(row, (0,)) for row in range(len(made))])
    known.save(tmp_path / "known.npz")
    Readings(None, "another").save(tmp_path / "another.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "known.npz").read_bytes()[:200])
    (tmp_path / "text.npz").write_text("no archive")
    for name, said in (
        ("another", "readings of material another"),
        ("cut", "no recorded readings"),
        ("text", "no recorded readings"),
        ("toy/arrays", "no recorded readings"),
    ):
        path = tmp_path / f"{name}.npz"
        given = train(tmp_path, tmp_path / "out", "--algorithm", "reinforce", "--readings", str(path))
        code, told = call(capsys, *given)
        assert code == BAD, told
        assert said in told["error"] and str(path) in told["error"]


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second training of the same folder, and a second promotion, are refused while the first is under way."""
    with alone_in(tmp_path / "out"):
        code, told = call(capsys, *train(tmp_path, tmp_path / "out"))
    assert (code, "another process" in told["error"]) == (USAGE, True), told
    code, told = call(capsys, *train(tmp_path, tmp_path / "out"))
    assert code == 0, told
    state = ("--state", str(tmp_path / "state"))
    with Registry(TrackingConfig(), tmp_path / "state").alone():
        code, told = call(capsys, "models", "promote", "--data", str(tmp_path / "toy"), *state)
        assert (code, "another process" in told["error"]) == (USAGE, True), told
        code, told = call(capsys, "models", "rollback", *state)
        assert (code, "another process" in told["error"]) == (USAGE, True), told


def test_a_damaged_database_of_mlflow_is_an_outage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3 that names the database, in listing and training."""
    monkeypatch.delenv("DYSRA_TRACKING_ENABLED")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "mlflow.db").write_text("this is no database, and longer than sixteen bytes")
    for given in (("models", "list", "--state", str(tmp_path / "state")), train(tmp_path, tmp_path / "out")):
        code, told = call(capsys, *given)
        assert (code, "tracking.uri" in told["error"]) == (3, True), told
