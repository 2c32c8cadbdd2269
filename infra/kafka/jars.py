"""Kafka's jars: fetched once by Maven at the versions of `pom.xml`, kept in a cache that processes share."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import DependencyUnreachable
from pipeline.shared_files import locked

HERE = Path(__file__).parent
KAFKA_VERSION = "4.3.0"
MINIMUM_JAVA = 17


LIBS_VARIABLE = "DYSRA_KAFKA_LIBS"
"""Names a folder that has Kafka's jars already, for a host that reaches no Maven repository."""


def cache_root() -> Path:
    """$DYSRA_CACHE, or ~/.cache/dysra."""
    given = os.environ.get("DYSRA_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "dysra"


def java() -> str:
    """The path of a Java 17 or newer; DependencyUnreachable says what to install."""
    home = os.environ.get("JAVA_HOME")
    candidate = Path(home, "bin", "java") if home else None
    path = str(candidate) if candidate and candidate.exists() else shutil.which("java")
    if path is None:
        raise DependencyUnreachable(
            f"the local broker needs Java {MINIMUM_JAVA} or newer, and there is no `java` on the PATH; "
            "install it (Debian: apt install openjdk-17-jre-headless; macOS: brew install openjdk@17), "
            "or use a cluster of your own by --bootstrap-servers"
        )
    ran = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=False)
    said = ran.stderr + ran.stdout
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None or int(found.group(1)) < MINIMUM_JAVA:
        version = found.group(1) if found else said.strip()[:80] or "unknown"
        raise DependencyUnreachable(
            f"the local broker needs Java {MINIMUM_JAVA} or newer; {path} is version {version}. Install a "
            "newer one (apt install openjdk-17-jre-headless) and point JAVA_HOME at it"
        )
    return path


def ensure_jars(timeout_s: float = 600.0, on_step: Callable[[str], None] | None = None) -> Path:
    """The folder of Kafka's jars, fetched if need be (20 s on a quick line, 43 MB).

    Safe to call from several processes at once: one fetches, the others wait, and a folder is either whole or
    absent. DependencyUnreachable if Maven is absent, fails, or takes longer than `timeout_s`. Where the variable
    DYSRA_KAFKA_LIBS names a folder, that one is used and nothing is fetched.
    """
    given = os.environ.get(LIBS_VARIABLE)
    if given:
        return _given_jars(Path(given).expanduser())
    pom = (HERE / "pom.xml").read_bytes()
    folder = cache_root() / f"kafka-{KAFKA_VERSION}-{hashlib.sha256(pom).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    deadline = time.monotonic() + timeout_s
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DependencyUnreachable(
            f"the cache folder {folder.parent} cannot be made ({error.strerror}); set DYSRA_CACHE to a "
            "folder of your own"
        ) from None
    lock = folder.parent / f"{folder.name}.lock"
    with locked(lock, deadline - time.monotonic(), DependencyUnreachable):
        if not folder.is_dir():
            if on_step:
                on_step(f"fetching Apache Kafka {KAFKA_VERSION} with Maven (once, 43 MB)")
            _fetch(pom, folder, deadline)
    return folder


def _given_jars(folder: Path) -> Path:
    if not (folder / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file():
        raise DependencyUnreachable(
            f"{LIBS_VARIABLE} is {folder}, and there is no kafka_2.13-{KAFKA_VERSION}.jar in it; name a folder "
            f"with the jars of Kafka {KAFKA_VERSION}, or unset it to have Maven fetch them"
        )
    return folder.absolute()


def _fetch(pom: bytes, folder: Path, deadline: float) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise DependencyUnreachable(
            "the local broker's jars are fetched by Maven, and there is no `mvn` on the PATH; install it "
            "(Debian, Ubuntu: apt install maven; macOS: brew install maven), or use a cluster of your own by "
            "--bootstrap-servers"
        )
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=folder.parent) as scratch:
        (Path(scratch) / "pom.xml").write_bytes(pom)
        command = [
            maven, "-q", "-B", "-f", f"{scratch}/pom.xml", "dependency:copy-dependencies",
            "-DincludeScope=runtime", f"-DoutputDirectory={scratch}/libs",
        ]  # fmt: skip
        try:
            ran = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=max(1.0, deadline - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DependencyUnreachable(
                "Maven did not fetch the broker's jars in time; see whether Maven Central can be reached "
                "(a mirror goes into ~/.m2/settings.xml) and try again"
            ) from None
        jars = list(Path(scratch, "libs").glob("*.jar"))
        if ran.returncode != 0 or not any(jar.name.startswith("kafka_2.13-") for jar in jars):
            said = (ran.stdout + ran.stderr).strip().splitlines()
            raise DependencyUnreachable(
                f"Maven could not fetch the broker's jars (exit code {ran.returncode}):\n  "
                + "\n  ".join(said[:8])
                + "\nsee whether Maven Central can be reached (a mirror goes into ~/.m2/settings.xml)"
            )
        os.replace(Path(scratch, "libs"), folder)
