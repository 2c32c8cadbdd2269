"""What every embedder promises, on the tiny static one; what a wrong spec is told."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.embed import EmbedderConfig, load_embedder, load_tokenizer, warm_up
from models.embed.artifacts import made_once, weights_hash
from models.embed.embedder import unit
from models.embed.folder import FolderEmbedder, refuse_pickled
from tests.models.embed.tiny import TINY_DIM, make_tiny_embedder

TEXTS = ["Rain fell on the harbour.", "", "The council voted.", "☃ 漢字 unrelated", "a" * 5_000]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny embedder."""
    return make_tiny_embedder(tmp_path_factory.mktemp("tiny"))


def test_vectors_have_unit_length_and_the_order_of_the_texts(tiny: Path) -> None:
    """Each row belongs to its text whatever the batch, also for an empty text."""
    embedder = load_embedder(str(tiny))
    vectors = embedder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), TINY_DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(embedder.encode([text])[0], vectors[row], atol=1e-6)


def test_no_texts_give_no_vectors(tiny: Path) -> None:
    """An empty list is a matrix without rows."""
    assert load_embedder(str(tiny)).encode([]).shape == (0, TINY_DIM)


def test_identity_follows_the_weights(tiny: Path, tmp_path: Path) -> None:
    """The same weights have the same identity, others another one."""
    again = load_embedder(str(tiny)).identity
    other = load_embedder(str(make_tiny_embedder(tmp_path / tiny.name, seed=1))).identity
    assert load_embedder(str(tiny)).identity == again
    assert other != again
    assert str(TINY_DIM) in again


def test_tokenizer_alone_counts_like_the_embedder(tiny: Path) -> None:
    """The chunker's tokenizer and the embedder's are the same."""
    tokenizer, embedder = load_tokenizer(str(tiny)), load_embedder(str(tiny))
    assert tokenizer.count_tokens(TEXTS) == embedder.count_tokens(TEXTS)
    assert tokenizer.offsets(TEXTS[0]) == embedder.offsets(TEXTS[0])
    assert tokenizer.max_tokens == embedder.max_tokens


def test_offsets_name_the_characters_of_each_token(tiny: Path) -> None:
    """Slices of the text by the offsets are the tokens' own characters."""
    text = "Überraschung: 漢字!"
    assert [text[a:b] for a, b in load_tokenizer(str(tiny)).offsets(text)][-2:] == ["字", "!"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": " "}, "model"),
        ({"precision": "int4"}, "int4"),
        ({"device": "tpu"}, "tpu"),
        ({"threads": -1}, "threads"),
        ({"batch_texts": 0}, "batch_texts"),
    ],
)
def test_wrong_configuration_is_named(fields: dict[str, object], named: str) -> None:
    """Each field is checked, and the message says which one and what was given."""
    with pytest.raises(ValueError, match=named):
        EmbedderConfig(**fields)  # type: ignore[arg-type]


def test_unknown_embedder_is_told_what_is_allowed(tmp_path: Path) -> None:
    """Neither a name nor a folder: the message lists the names."""
    with pytest.raises(ValueError, match="minilm"):
        load_embedder(str(tmp_path / "absent"))


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """A folder that holds no model says so."""
    with pytest.raises(ValueError, match="no model weights"):
        weights_hash(tmp_path)


def test_a_folder_of_pickled_weights_is_refused_before_they_are_read(tmp_path: Path) -> None:
    """By the file's name, also where it is a part (a Dense layer) of a model that is else in safetensors."""
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refuse_pickled(tmp_path)  # the library takes the safetensors
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"2_Dense/pytorch_model\.bin is pickled.*safetensors"):
        FolderEmbedder(tmp_path, EmbedderConfig(model=str(tmp_path), device="cpu"))


def test_warm_up_says_what_will_be_made(tmp_path: Path) -> None:
    """The first use of a named embedder is announced; a folder needs nothing."""
    cold = str(tmp_path)
    assert "distilling" in (warm_up(EmbedderConfig(model="static", cache_dir=cold)) or "")
    assert "ONNX" in (warm_up(EmbedderConfig(model="minilm", cache_dir=cold, device="cpu")) or "")
    assert warm_up(EmbedderConfig(model=str(tmp_path))) is None


def test_artifact_is_made_once_by_many_threads(tmp_path: Path) -> None:
    """Concurrent callers share one making, and see it only when it is whole."""
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.2)
        (folder / "part").write_text("whole")

    target = tmp_path / "deep" / "artifact"
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append((made_once(target, make) / "part").read_text()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["whole"] * 8
    assert len(made) == 1


def test_failed_making_leaves_nothing(tmp_path: Path) -> None:
    """An error while making is raised, and the next caller begins anew."""

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("no space")

    target = tmp_path / "artifact"
    with pytest.raises(RuntimeError, match="no space"):
        made_once(target, fail)
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_unit_never_divides_by_zero(rows: list[list[float]]) -> None:
    """Every row comes out finite and of length 1, a zero row too."""
    vectors = unit(np.asarray(rows, dtype=np.float32))
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_without_embedding_words_are_counted_and_every_vector_is_zero() -> None:
    """So a store can be searched by words alone, and a hybrid search comes out as BM25 ranks it."""
    embedder = load_embedder("none")
    text = "A bridge, at last: it opens."
    assert [text[start:end] for start, end in embedder.offsets(text)] == [
        *("A", "bridge", ",", "at", "last", ":", "it", "opens", ".")
    ]
    assert embedder.count_tokens([text, ""]) == [9, 0]
    assert embedder.encode(["a", "b"]).tolist() == [[0.0], [0.0]]
    assert [tuple(span) for span in load_tokenizer("none").offsets("é!")] == [(0, 1), (1, 2)]


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_words_of_plain_text_are_found_as_of_any_other(text: str) -> None:
    """The quick way for ASCII and the general one give the same spans."""
    spans = [(int(start), int(end)) for start, end in load_tokenizer("none").offsets(text)]
    assert spans == [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
