"""Learned codes in the cache: bytes, agreement with their definition, snapshots, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.cache.learned import LayerCodes, LearnedWeights, learned_folder
from models.cache.learned_autoencoder import AutoencoderLayer
from models.cache.ranker import Ranker, base_identity
from models.hf import HfBackbone
from models.hf.backbone import LEARNED_TYPES
from models.shipped import COMPRESSORS, RANKER
from tests.models import tiny

KINDS = tuple(LEARNED_TYPES)
RANK = 12


def trained(folder: Path, kind: str, seed: int = 0, backbone: HfBackbone | None = None) -> Path:
    """Weights for the tiny model, started from random pairs and moved away from there."""
    backbone = backbone or tiny.backbone()
    torch.manual_seed(seed)
    layers: dict[int, LayerCodes] = {}
    for spec in backbone.specs:
        if spec.window is None:
            layer = LEARNED_TYPES[kind].layer_type(spec.num_kv_heads, spec.head_dim, RANK)
            layer.start(torch.randn(2, 60, 16), torch.randn(2, 60, 16))
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            layers[spec.index] = layer
    LearnedWeights(kind, layers, base_identity(backbone.identity), {}).save(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_starting_point_is_the_best_projection(kind: str) -> None:
    """Untrained: at full rank nothing is lost; the projection's first columns are SVD's over all samples."""
    keys, values = torch.randn(2, 80, 8), torch.randn(2, 80, 8)
    layer = LEARNED_TYPES[kind].layer_type(2, 8, 16 if kind == "autoencoder" else 8)
    layer.start(keys, values)
    read = layer.read(keys, values, layer.most_rank)
    for found, wanted in zip(read, (keys, values), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    if kind == "projection":
        few, _ = layer.read(keys, values, 3)
        u, s, v = torch.linalg.svd(keys, full_matrices=False)
        torch.testing.assert_close(few, u[..., :3] * s[:, None, :3] @ v[:, :3], atol=1e-4, rtol=1e-3)


def test_an_autoencoders_code_is_its_formula() -> None:
    """Pairs over their deviations, a linear part and a hidden layer, added; one head against plain numbers."""
    torch.manual_seed(4)
    layer = AutoencoderLayer(1, 3, 2)
    keys, values = 5 * torch.randn(1, 9, 3), torch.randn(1, 9, 3)
    layer.start(keys, values)
    with torch.no_grad():
        layer.outer.normal_()
    both = torch.cat((keys[0] / keys.std(), values[0] / values.std()), dim=1)
    hidden = torch.nn.functional.gelu(both @ layer.inner[0])
    wanted = both @ layer.encoder[0] + hidden @ layer.outer[0]
    code, same = layer.encode(keys, values)
    assert code is same
    torch.testing.assert_close(code[0], wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_holds_codes_alone_and_reads_them_back(kind: str, tmp_path: Path) -> None:
    """Latents are what the layer reads back from the evicted pairs; no block has a basis of its own."""
    backbone, folder = tiny.backbone(), trained(tmp_path, kind)
    config = tiny.budgets(compressor=kind, compressor_weights=str(folder), rank=5)
    cache, raw = backbone.new_cache(config), backbone.new_cache(tiny.budgets(ring=96, compressor="drop"))
    ids = [1, *tiny.ids(63)]
    before = cache.nbytes
    backbone.read(ids[:32], cache)  # one block leaves; all was computed before
    backbone.read(ids[:32], raw)
    layer, exact = cache.stored[1], raw.stored[1]
    assert layer.blocks == 1 and cache.nbytes == before
    keys, values, _, _ = exact.visible()
    codes = layer.compressor.layer
    wanted = codes.read(keys[:, 2:10], values[:, 2:10], 5)
    held_keys, held_values, _, _ = layer.visible()
    torch.testing.assert_close(held_keys[:, 2:10], wanted[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(held_values[:, 2:10], wanted[1], atol=1e-4, rtol=1e-3)
    names = {name for name in layer.tensors() if name.startswith("latents.")}
    assert not any("basis" in name for name in names)
    assert ("latents.value_rows" in names) == (kind == "projection")
    backbone.read(ids[32:], cache)
    assert cache.nbytes == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_goes_on_identically_and_knows_its_weights(kind: str, tmp_path: Path) -> None:
    """Same bytes after the same tokens; codes of other weights are refused; a reset cache is a new one."""
    backbone, folder = tiny.backbone(), trained(tmp_path, kind)
    config = tiny.budgets(compressor=kind, compressor_weights=str(folder), rank=5)
    cache = backbone.new_cache(config)
    backbone.read(tiny.ids(64), cache)
    twin = type(cache).from_bytes(cache.to_bytes(), backbone, config)
    for each in (cache, twin):
        backbone.read(tiny.ids(40, seed=2), each)
    assert cache.to_bytes() == twin.to_bytes()
    snapshot = cache.to_bytes()
    cache.reset()
    assert cache.to_bytes() == backbone.new_cache(config).to_bytes()
    trained(tmp_path, kind, seed=1)
    with pytest.raises(ValueError, match=f"were made by another {kind}"):
        type(cache).from_bytes(snapshot, backbone, config)


def test_an_autoencoder_spends_half_of_the_projection(tmp_path: Path) -> None:
    """One code for key and value."""
    backbone = tiny.backbone()
    sizes = {}
    for kind in KINDS:
        trained(tmp_path / kind, kind)
        config = tiny.budgets(compressor=kind, compressor_weights=str(tmp_path / kind), rank=6)
        layer = backbone.new_cache(config).stored[1]
        sizes[kind] = sum(
            t.nbytes for n, t in layer.tensors().items() if n.startswith("latents.") and "rows" in n
        )
    assert sizes["projection"] == 2 * sizes["autoencoder"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_do_not_fit_name_both_sides(kind: str, tmp_path: Path) -> None:
    """Another model's, too small a rank, a missing folder, a damaged file, frames they were not trained in."""
    backbone, folder = tiny.backbone(), trained(tmp_path / "good", kind)
    other = trained(tmp_path / "other", kind, backbone=tiny.backbone(seed=3))

    def made(**changes: object) -> None:
        given = {"compressor_weights": str(folder), "rank": 5} | changes
        backbone.new_cache(tiny.budgets(compressor=kind, **given))

    with pytest.raises(ValueError, match=r"was trained on .*, the model is"):
        made(compressor_weights=str(other))
    with pytest.raises(ValueError, match=f"cache.rank is 13, the {kind} of layer 1 was trained up to 12"):
        made(rank=13)
    with pytest.raises(ValueError, match="does not exist; train it"):
        made(compressor_weights=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="key_frame is within_block"):
        made(key_frame="within_block")
    if kind == "autoencoder":
        with pytest.raises(ValueError, match=r"cache.value_rank is 4 and cache.rank 5"):
            made(value_rank=4)
    (folder / f"{kind}.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="no safetensors file"):
        made()


def test_shipped_codes_belong_to_the_shipped_rankers_model() -> None:
    """Both kinds, the full-attention layers of gemma-3-270m, under 2 MB together."""
    if not COMPRESSORS.is_dir() or not RANKER.is_dir():
        pytest.skip("weights are not beside the code (a job's upload leaves them out)")
    for kind in KINDS:
        weights = LearnedWeights.load(kind, LEARNED_TYPES[kind].layer_type, learned_folder("shipped"))
        weights.check(Ranker.load(RANKER).weights_of + ":adapter-none")
        assert set(weights.layers) == {5, 11, 17}
        assert {tuple(layer.key_decoder.shape) for layer in weights.layers.values()} == {
            (1, weights.layers[5].most_rank, 256)
        }
    assert sum(path.stat().st_size for path in COMPRESSORS.glob("*.safetensors")) < 2 << 20
