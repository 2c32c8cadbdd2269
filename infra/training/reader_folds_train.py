"""Fold readers trained side by side, each in a process of its own: `reader_folds train`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time

import numpy as np

from infra.training.policy_readers import FOLDS_FILE, SHIPPED_READS, fold_names, load_folds, own_device
from models.hf.cut import VOCABULARY


def train(given: argparse.Namespace) -> int:
    """Train all side by side, each a process; OUT/<fold> is an adapter when it is done. How many are missing.

    The devices of CUDA_VISIBLE_DEVICES are dealt among them.
    """
    if not np.array_equal(np.load(given.rows / "coder" / VOCABULARY), np.load(given.reader / VOCABULARY)):
        raise ValueError(f"{given.rows} was made for another vocabulary than {given.reader}; make it again")
    given.work.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    names = fold_names(load_folds(given.rows))
    children = {}
    for at, name in enumerate(names):
        if (given.out / name / "adapter_config.json").exists():
            continue
        command = [
            sys.executable, "-m", "infra.training.reader_fast", "--reader", str(given.reader),
            "--rows", str(given.rows / name), "--runs", str(given.runs), "--run", name,
            "--out", str(given.out), "--work", str(given.work), "--seconds", f"{given.seconds:.0f}",
            "--device", given.device, "--known", f"{1 - 1 / len(names):.4f}",
        ]  # fmt: skip
        with (given.out / f"{name}.log").open("w") as log:
            environment = os.environ | own_device(at)
            children[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    until = time.monotonic() + given.seconds + given.grace
    for name, child in children.items():
        try:
            child.wait(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
        if (given.work / name / "adapter_config.json").exists():
            staged = given.out / f".{name}"
            shutil.copytree(given.work / name, staged, dirs_exist_ok=True)
            staged.rename(given.out / name)
        print((given.out / f"{name}.log").read_text(errors="replace")[-800:], flush=True)  # noqa: T201
    for name in (FOLDS_FILE, SHIPPED_READS):
        if (given.rows / name).exists():
            shutil.copyfile(given.rows / name, given.out / name)
    return sum(not (given.out / name / "adapter_config.json").exists() for name in names)
