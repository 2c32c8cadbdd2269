"""What of a GPU run is carried home: at most twenty files of at most 15 MiB, and how they are put together again.

python -m infra.training.policy_collect build/gpu-files/*.tar.gz* --out build/policy-home     # here, afterwards
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from infra.training.policy_pairs import BGE, BGE_DUAL, E5, E5_DUAL, PLACES
from infra.training.policy_ranks import NAMES

PIECE = 15 << 20
MOST_FILES = 20
OF_ENCODERS = tuple(NAMES[kind] for kind in (E5, E5_DUAL, BGE, BGE_DUAL))


def collect(state: Path, out: Path) -> dict[str, int]:
    """Pack what is judged (with `scores.npz`), policies but routers, pair readers, verifier; bytes of each file.

    A pair reader over E5 or BGE lies in a folder of its own beside OUT, as `OUT_pair_e5`.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    groups = {
        "results": [
            *state.glob("evaluation.json"),
            *state.glob("scores.npz"),
            *state.glob("ranks.json"),
            *sorted(state.glob("policies/*/record.json")),
            *(path for path in sorted(state.glob("policies/*/policy/*")) if "router" not in path.parts[-3]),
            *sorted(state.glob("pairs*/*/config.json")),
            *state.glob("arms.json"),
            *sorted(state.glob("arms/*/pairs*/*/config.json")),
            *sorted(state.glob("arms/*/pairs*/*/curve.json")),
            *sorted(state.glob("trust/*.json")),
            *sorted(state.glob("trust/*/config.json")),
        ],
        **{
            NAMES[kind]: [path for path in sorted(state.glob(f"{place}/whole/*")) if path.suffix != ".npz"]
            for kind, place in PLACES.items()
        },
        "pair_arm": _of_best_arm(state),
        "verifier": [path for path in sorted(state.glob("trust/whole/*")) if path.suffix != ".npz"],
    }
    for name, paths in groups.items():
        if not paths:
            continue
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w:gz", compresslevel=6) as tar:
            for path in paths:
                tar.add(path, path.relative_to(state).as_posix())
        packed = held.getvalue()
        # 30 MiB each: a call brings home 60 MiB in all
        folder = out.parent / f"{out.name}_{name}" if name in OF_ENCODERS else out
        folder.mkdir(parents=True, exist_ok=True)
        for at in range(0, len(packed), PIECE):
            target = folder / f"{name}.tar.gz.{at // PIECE:02d}"
            target.write_bytes(packed[at : at + PIECE])
            sizes[target.name] = target.stat().st_size
    if len(sizes) > MOST_FILES:
        raise ValueError(
            f"{len(sizes)} files; allowed: {MOST_FILES}. Train fewer policies or make them narrower"
        )
    return sizes


def _of_best_arm(state: Path) -> list[Path]:
    """The pair readers of the form of reward that policies see, trained on all questions."""
    told = state / "arms.json"
    if not told.is_file():
        return []
    home = state / "arms" / json.loads(told.read_text())["best"]
    return [
        path
        for path in sorted(home.glob("pairs*/whole/*"))
        if path.suffix != ".npz" and not path.parents[1].is_symlink()
    ]


def unpack(files: Sequence[Path], out: Path) -> list[Path]:
    """Put the pieces that `collect` made together and extract them; the files written."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(files):
        groups.setdefault(path.name.rpartition(".")[0], []).append(path)
    for pieces in groups.values():
        whole = io.BytesIO(b"".join(path.read_bytes() for path in pieces))
        with tarfile.open(fileobj=whole, mode="r:gz") as tar:
            tar.extractall(out, filter="data")
    return sorted(path for path in out.rglob("*") if path.is_file())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for path in unpack(given.files, given.out):
        print(path)  # noqa: T201


if __name__ == "__main__":
    main()
