"""MiniLM through ONNX agrees with the original; the distilled static embedder agrees with model2vec."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.embed import Embedder, EmbedderConfig, load_embedder
from models.embed import minilm as minilm_module
from models.embed.minilm import minilm_folder

pytestmark = pytest.mark.model

TEXTS = [
    "Rain.",
    "The harbour authority closed both piers after waves broke over the sea wall on Thursday night.",
    "A minister resigned. " * 120,
    "",
    "Preise in Zürich stiegen um 3,5 %.",
]


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    """The default embedder on CPU."""
    return load_embedder(EmbedderConfig(device="cpu", threads=1, batch_texts=3))


def test_onnx_agrees_with_sentence_transformers(minilm: Embedder) -> None:
    """Mask, mean, norm and truncation are the original's: cosine above 0.9999 for short, long and empty texts."""
    from sentence_transformers import SentenceTransformer

    original = SentenceTransformer(str(minilm_folder()), device="cpu")
    expected = original.encode(TEXTS, convert_to_numpy=True, show_progress_bar=False)
    actual = minilm.encode(TEXTS)
    assert float((actual * expected).sum(axis=1).min()) > 0.9999


def test_padding_does_not_change_a_vector(minilm: Embedder) -> None:
    """A text embedded beside a longer one has the vector that it has alone."""
    alone = minilm.encode([TEXTS[0]])[0]
    beside = minilm.encode([TEXTS[0], TEXTS[2]])[0]
    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_identity_names_width_and_weights(minilm: Embedder) -> None:
    """A store remembers which model, how wide, and which weights."""
    assert minilm.identity.startswith("minilm-384-")
    assert minilm.dim == 384


def test_no_torch_is_loaded_to_learn_that_there_is_no_gpu(minilm: Embedder) -> None:
    """Where no driver of CUDA is installed, an embedder whose export is there embeds without torch."""
    if minilm_module._cuda_driver():
        pytest.skip("CUDA's driver is installed: torch is asked for its devices")
    code = (
        "import sys; from models.embed import EmbedderConfig, load_embedder, warm_up; "
        "c = EmbedderConfig(threads=1); print(warm_up(c), load_embedder(c).identity, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert ran.stdout.split() == ["None", minilm.identity, "False"], ran.stdout + ran.stderr


@pytest.mark.parametrize("found", [False, True])
def test_torch_decides_where_the_driver_is_installed(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    """A driver alone is no device; and `cuda` is refused in words where torch sees none."""
    import torch

    monkeypatch.setattr(minilm_module, "_cuda_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert minilm_module._use_cuda("auto") is found
    assert not minilm_module._use_cuda("cpu")
    if not found:
        with pytest.raises(ValueError, match="finds no CUDA device"):
            minilm_module._use_cuda("cuda")


def test_disagreeing_export_is_refused() -> None:
    """An export whose vectors are wrong never gets into use."""
    folder = minilm_folder()
    right = minilm_module._torch_forward(folder)
    with pytest.raises(RuntimeError, match="disagrees"):
        minilm_module._require_agreement(
            right, lambda ids, mask: right(ids[:, ::-1].copy(), mask), folder, 0.999, "reversed"
        )


def test_static_is_the_mean_of_its_token_vectors() -> None:
    """The distilled embedder equals model2vec on its own vectors, padding left out."""
    if os.environ.get("DYSRA_STATIC_TESTS") == "0":
        pytest.skip("DYSRA_STATIC_TESTS=0")
    from model2vec import StaticModel

    from models.embed.static import distilled_folder

    config = EmbedderConfig(model="static")
    embedder = load_embedder(config)
    reference = StaticModel.from_pretrained(Path(distilled_folder(config)))
    reference.tokenizer.no_padding()
    reference.tokenizer.no_truncation()
    texts = [text for text in TEXTS if text]
    expected = reference.encode(texts, max_length=None)
    np.testing.assert_allclose(embedder.encode(texts), expected, atol=1e-5)
    assert embedder.dim == 256
