"""A reader that was carried for one purpose as a folder that every loader of ours reads.

    python3 -m infra.training.reader_folder --carried carried --out /tmp/reader

`carried` is what `infra.training.policy_carry --join` put together (base.safetensors over a cut vocabulary, its
tokenizer packed). OUT then holds what `models.hf.loading.load` wants: model.safetensors (a link), config,
tokenizer, vocabulary, and whose weights they are. A folder that is readable already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.cache.ranker import Ranker
from models.hf import gemma_gguf
from models.hf.cut import CUT, VOCABULARY
from models.shipped import RANKER


def make_folder(carried: Path, out: Path) -> Path:
    """Make the folder; ValueError that names what the carried one lacks."""
    if (out / CUT).is_file() and (out / "model.safetensors").exists():
        return out
    for name in ("base.safetensors", "config.json", "tokenizer.json.xz", VOCABULARY):
        if not (carried / name).is_file():
            raise ValueError(
                f"--carried {carried} has no {name}; join the parts first: "
                "python3 -m infra.training.policy_carry --join PARTS --out FOLDER"
            )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy2(carried / "config.json", out / "config.json")
    (out / "tokenizer.json").write_bytes(lzma.decompress((carried / "tokenizer.json.xz").read_bytes()))
    np.save(out / VOCABULARY, np.load(carried / VOCABULARY))
    (out / "model.safetensors").unlink(missing_ok=True)
    (out / "model.safetensors").symlink_to((carried / "base.safetensors").resolve())
    # the shipped ranker knows whose keys it ranks: those of the weights that were cut
    identity = Ranker.load(RANKER).weights_of
    (out / CUT).write_text(json.dumps({"identity": identity, "of": gemma_gguf.NAME}))
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    make_folder(given.carried, given.out)


if __name__ == "__main__":
    main()
