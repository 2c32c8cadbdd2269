"""Pack what a GPU host without network lacks: Ray, a Java runtime, Kafka's jars, Python wheels, MiniLM.

    python -m infra.bench.host_pack [--out build] [--parts java,ray,store,minilm,peer] [--faiss TREE]
    python -m infra.bench.host_pack --carry build/ingest [--out build] [--parts …]

Here, once: a JDK of 17 (jlink), pip and xz are needed. Each part becomes a folder OUT/host-<part> of pieces of at
most 33 MiB; `--carry` deals the pieces of packed parts to folders build/ingest-1, -2 and so on, small enough to
be carried on its own. `infra/bench/host_session.py` unpacks and uses them there, with the standard library alone.
`java`: a runtime and Kafka's jars. `ray`: Ray without what no run needs, and its requirements. `store`: the wheels
of the store and of the broker's client, with faiss (TREE: an unpacked faiss-gpu to take instead of faiss-cpu).
`minilm`: the embedder in half precision, for CUDA. `serve`: Ray Serve (as it lies here, in Python), its web server,
and what distils the `static` embedder from MiniLM. `peer`: LanceDB, the outside peer of `dysra bench search`. With
java, ray and store everything runs that does not embed; `dysra bench faults` needs minilm and serve too, and `dysra
bench search-gpu` `store` and `ray` alone.

The versions are those of constraints.txt. With --host-packages FILE (names, one a line) a requirement that is
neither carried nor there is an error.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIECE_BYTES = 33 * 2**20
PYTHON = "3.12"
WHEELS = {
    "ray": ("ray", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py"),
    "store": ("kafka-python", "crc32c", "faiss-cpu", "orjson", "structlog", "tantivy", "zstandard", "pydantic",
              "pydantic-core", "typing-inspection", "annotated-types"),
    # An old reflection, whose generated code takes any protobuf that the host may have; Serve imports it, no more.
    "serve": ("fastapi", "starlette", "uvicorn", "opentelemetry-api", "grpcio-reflection==1.62.3", "model2vec",
              "skeletoken", "mmh3", "PyStemmer"),
    "peer": ("lancedb", "lance-namespace", "lance-namespace-urllib3-client", "deprecation"),
}  # fmt: skip
_PLATFORMS = (
    *(f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
_UNUSED = (
    "ray/jars/", "ray/cpp/", "ray/rllib/", "ray/llm/", "ray/serve/", "ray/data/", "ray/dashboard/client/",
    "ray/tune/", "ray/core/libjemalloc.so",
)  # fmt: skip
"""Of Ray's wheel: what neither ingest, nor the store, nor the benches load."""
_JAVA_MODULES = (
    "java.base", "java.desktop", "java.logging", "java.management", "java.naming", "java.net.http",
    "java.security.jgss", "java.security.sasl", "java.sql", "java.xml", "jdk.crypto.ec", "jdk.management",
    "jdk.unsupported", "jdk.zipfs",
)  # fmt: skip
_SCREEN = ("awt", "fontmanager", "mlib_image", "lcms", "javajpeg", "splashscreen", "jsound", "jawt")
"""java.desktop is there for java.beans, which log4j loads: its libraries for pictures and sound are not."""
_UNUSED_JARS = ("scala-reflect-", "jspecify-")
_NATIVE = (".so", ".dll", ".dylib", ".jnilib", ".a")
_HERE = ("linux/amd64", "Linux/x86_64")


def pinned() -> dict[str, str]:
    """Version by name, as constraints.txt has them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def download(names: Iterable[str], into: Path) -> list[Path]:
    """The wheels of these packages for the host's Python, without their requirements."""
    versions = pinned()
    wanted = [f"{name}=={versions[name]}" if name in versions else name for name in names]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "-d", str(into)]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *wanted], check=True)
    return sorted(into.glob("*.whl"))


def unpack_wheel(wheel: Path, site: Path) -> None:
    """Its files that are used, with their modes."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or entry.filename.startswith(_UNUSED):
                continue
            archive.extract(entry, site)
            if (mode := entry.external_attr >> 16) & 0o111:
                (site / entry.filename).chmod(mode & 0o777)


def lacking(carried: Iterable[Path], there: set[str]) -> list[str]:
    """Requirements of the wheels that neither another wheel nor the host has."""
    metadata: dict[str, list[str]] = {}
    for wheel in carried:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            head = HeaderParser().parsestr(archive.read(name).decode())
        metadata[canonical(str(head["Name"]))] = [str(line) for line in head.get_all("Requires-Dist") or []]
    missing = []
    for name, requirements in metadata.items():
        for line in requirements:
            optional = any(mark in line for mark in ("extra ==", "python_full_version <", "python_version <"))
            needed = canonical(re.split(r"[\s<>=!~;\[(]", line)[0])
            if not optional and needed not in metadata and needed not in there:
                missing.append(f"{name} needs {needed}")
    return sorted(set(missing))


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def java_runtime(target: Path) -> None:
    """A Java runtime of the modules that the broker loads."""
    jlink = shutil.which("jlink")
    if jlink is None:
        raise SystemExit("host_pack: there is no jlink on the PATH; install a JDK of 17 or newer")
    command = [jlink, "--add-modules", ",".join(_JAVA_MODULES), "--strip-debug", "--no-man-pages"]
    # Not compressed here: what packs the parts does it better.
    subprocess.run([*command, "--no-header-files", "--compress=0", "--output", str(target)], check=True)
    for library in (target / "lib").glob("lib*.so"):
        if library.stem.removeprefix("lib").startswith(_SCREEN):
            library.unlink()


def thin_jars(source: Path, target: Path) -> None:
    """Kafka's jars without other systems' native code, stored plainly so that they compress together."""
    target.mkdir(parents=True)
    for jar in sorted(source.glob("*.jar")):
        if jar.name.startswith(_UNUSED_JARS):
            continue
        with zipfile.ZipFile(jar) as old, zipfile.ZipFile(target / jar.name, "w", zipfile.ZIP_STORED) as new:
            for entry in old.infolist():
                foreign = entry.filename.endswith(_NATIVE) and not any(h in entry.filename for h in _HERE)
                if not entry.is_dir() and not foreign:
                    new.writestr(entry.filename, old.read(entry))


def half_minilm(site: Path) -> None:
    """The package of MiniLM with its weights in float16."""
    import torch
    from safetensors.torch import load_file, save_file

    from models.embed.minilm import minilm_folder

    folder = minilm_folder()
    target = site / folder.parent.name
    shutil.copytree(
        folder.parent, target, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.bin")
    )
    for path in folder.glob("*.safetensors"):
        tensors = load_file(str(path))
        halves = {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in tensors.items()}
        save_file(halves, str(target / folder.name / path.name), metadata={"format": "pt"})


def pack(tree: Path, out: Path, level: int) -> int:
    """Compress a folder into pieces OUT/bundle-NN; the bytes in all."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    total = 0
    tar = subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE)
    xz = subprocess.Popen(["xz", "-T0", f"-{level}"], stdin=tar.stdout, stdout=subprocess.PIPE)
    assert tar.stdout is not None and xz.stdout is not None
    tar.stdout.close()
    number = 0
    while data := xz.stdout.read(PIECE_BYTES):
        (out / f"bundle-{number:02d}").write_bytes(data)
        number += 1
        total += len(data)
    if tar.wait() or xz.wait():
        raise SystemExit(f"host_pack: packing {out.name} failed (tar {tar.returncode}, xz {xz.returncode})")
    return total


def deal(packed: Iterable[Path], prefix: Path, room_bytes: int = 0) -> list[Path]:
    """Cut packed parts anew into folders PREFIX-1, PREFIX-2 … of `room_bytes` each (0: PIECE_BYTES), the last with
    what is left; a piece lies under its part's name. The folders. What such folders held before is gone."""
    for number in range(1, 100):
        shutil.rmtree(prefix.with_name(f"{prefix.name}-{number}"), ignore_errors=True)
    room_bytes = left = room_bytes or PIECE_BYTES
    folders = [prefix.with_name(f"{prefix.name}-1")]
    for part in packed:
        data = b"".join(piece.read_bytes() for piece in sorted(part.glob("bundle-*")))
        number = 0
        while data:
            if not left:
                folders.append(prefix.with_name(f"{prefix.name}-{len(folders) + 1}"))
                left = room_bytes
            target = folders[-1] / part.name
            target.mkdir(parents=True, exist_ok=True)
            (target / f"bundle-{number:02d}").write_bytes(data[:left])
            data, left, number = data[left:], max(0, left - len(data)), number + 1
    return folders


def main() -> None:
    """Read the arguments and pack the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--parts", default="java,ray,store,minilm")
    parser.add_argument(
        "--faiss", type=Path, help="an unpacked faiss-gpu wheel to carry instead of faiss-cpu"
    )
    parser.add_argument("--host-packages", type=Path, help="names of the packages that the host has")
    parser.add_argument(
        "--carry", type=Path, help="deal the pieces of parts packed before to folders CARRY-1 …"
    )
    parser.add_argument("--level", type=int, default=2, help="xz level")
    parser.add_argument(
        "--room-mib", type=float, default=PIECE_BYTES / 2**20, help="most of a folder CARRY-1 …"
    )
    given = parser.parse_args()
    if given.carry is not None:
        packed = [given.out / f"host-{part}" for part in given.parts.split(",")]
        for folder in deal(packed, given.carry, int(given.room_mib * 2**20)):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            sys.stdout.write(f"{folder}: {size / 2**20:.1f} MiB\n")
        return
    there = (
        {canonical(name) for name in given.host_packages.read_text().split()} if given.host_packages else None
    )
    for part in given.parts.split(","):
        with tempfile.TemporaryDirectory(prefix="host-pack-") as scratch:
            tree = Path(scratch, "tree")
            (tree / "site").mkdir(parents=True)
            names = [n for n in WHEELS.get(part, ()) if not (given.faiss and n == "faiss-cpu")]
            wheels = download(names, Path(scratch, "wheels")) if names else []
            for wheel in wheels:
                unpack_wheel(wheel, tree / "site")
            if there is not None and (missing := lacking(wheels, there)):
                raise SystemExit("host_pack: the host lacks what is not carried: " + "; ".join(missing))
            if part in EXTRAS:
                EXTRAS[part](tree, given)
            total = pack(tree, given.out / f"host-{part}", given.level)
            sys.stdout.write(f"{given.out / f'host-{part}'}: {total / 2**20:.1f} MiB\n")


def _java(tree: Path, given: argparse.Namespace) -> None:
    from infra.kafka.jars import ensure_jars

    java_runtime(tree / "jre")
    thin_jars(ensure_jars(), tree / "kafka-libs")


def _faiss(tree: Path, given: argparse.Namespace) -> None:
    if given.faiss:
        for folder in sorted(given.faiss.glob("faiss*")):
            shutil.copytree(folder, tree / "site" / folder.name)


def _serve(tree: Path, given: argparse.Namespace) -> None:
    from importlib.util import find_spec

    found = find_spec("ray.serve")
    if found is None or found.origin is None:
        raise SystemExit("host_pack: ray.serve is not installed here; run make setup")
    shutil.copytree(
        Path(found.origin).parent, tree / "site/ray/serve", ignore=shutil.ignore_patterns("__pycache__")
    )


EXTRAS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "java": _java,
    "serve": _serve,
    "store": _faiss,
    "minilm": lambda tree, given: half_minilm(tree / "site"),
}

if __name__ == "__main__":
    main()
