"""Searches beside a steady 200 articles a second, at 1, 8 and 64 clients, against flat faiss and LanceDB.

All hold the same synthetic vectors (`vectors.py`: shaped like real embeddings) and the same short texts, and
all are asked for the ten nearest by vector in this one process. The store is a shard's own segments and search
(`held_store.py`), searches that wait joined as in a shard (`store alone`: each by itself, four at a time); what
arrives goes to its growing segment. Its log, its files and its keyword index are not there, as the peers have
none. faiss: one flat index under a lock. LanceDB (PyPI, left out where it is not installed): its local mode, an
IVF built once over the rows of the start, later rows scanned. Recall is told against products of all rows.

It runs in a process of its own in which numpy and faiss keep to one thread a search, as Ray has it in a shard's
actor. With `work` the store's index is kept in that folder and found there by the next run (a million chunks:
training takes minutes on two cores).

    python -m infra.bench.search --out DIR [--limit-s 190] [--peers store,lancedb] [--articles 500000] …

is the same for a host that is lent by the minute: DIR/search.json is written anew after every row, and no row is
begun that could not be ended in time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.bench.measure import commit, environment
from infra.bench.search_peers import PER_ARTICLE, SEED, Flat, K, Lance, Peer, Store, build_indexes
from infra.bench.vectors import clustered
from pipeline.errors import UsageError

_EXACT = 100
_JOIN_S = 5.0
"""What the last searches of a row may take, guessed."""


def load(
    peer: Peer, clients: int, seconds: float, rate: float, questions: NDArray[np.float32]
) -> dict[str, Any]:
    """Clients that ask one after the other while articles arrive; how long searches and additions took."""
    stop = threading.Event()
    spent: list[float] = []
    failures: list[str] = []

    def ask(at: int) -> None:
        while not stop.is_set():
            at = (at + 13) % len(questions)
            started = time.perf_counter()
            try:
                peer.search(questions[at])
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}"[:120])
                return
            spent.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask, args=(i * 7,), daemon=True) for i in range(clients)]
    fresh = clustered(4_096, 99)
    waited: list[float] = []
    begun, done = time.perf_counter(), 0
    for thread in threads:
        thread.start()
    while (now := time.perf_counter() - begun) < seconds:
        due = int(now * rate)
        if due > done:
            rows = (np.arange(done, due).repeat(PER_ARTICLE) * 2 + np.tile([0, 1], due - done)) % len(fresh)
            peer.add(fresh[rows])
            ended = time.perf_counter() - begun
            waited += [ended - number / rate for number in range(done, due)]
            done = due
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    lasted = time.perf_counter() - begun
    return {
        "clients": clients,
        "searches_per_s": round(len(spent) / lasted, 1),
        "p50_ms": round(float(np.percentile(spent, 50)) * 1e3, 2) if spent else None,
        "p99_ms": round(float(np.percentile(spent, 99)) * 1e3, 2) if spent else None,
        "articles_per_s": round(done / lasted, 1),
        "due_to_added_p99_ms": round(float(np.percentile(waited, 99)) * 1e3, 1) if waited else None,
        "failures": len(failures),
        "first_failure": failures[0] if failures else "",
    }


def nearest_rows(vectors: NDArray[np.float16], questions: NDArray[np.float32]) -> list[set[int]]:
    """The rows with the K largest products, by brute force in float32."""
    scores: list[NDArray[np.float32]] = []
    rows: list[NDArray[np.int64]] = []
    for begin in range(0, len(vectors), 131_072):
        part = questions @ vectors[begin : begin + 131_072].astype(np.float32).T
        best = np.argpartition(-part, min(K, part.shape[1]) - 1, axis=1)[:, :K]
        scores.append(np.take_along_axis(part, best, 1))
        rows.append(best + begin)
    order = np.argsort(-np.concatenate(scores, 1), axis=1)[:, :K]
    return [set(row) for row in np.take_along_axis(np.concatenate(rows, 1), order, 1).tolist()]


def run(
    articles: int = 500_000,
    seconds: float = 15.0,
    rate: float = 200.0,
    ivf_rows: int = 262_144,
    peers: str = "",
    clients: str = "1,8,64",
    work: str = "",
    kept: str = "",
    limit_s: float = 0.0,
) -> dict[str, Any]:
    """`articles` of two chunks each held from the start (500,000: a million chunks); `peers` names those to run.

    `kept` is a file that has every row so far; after `limit_s` (0: none) no further row is begun.
    """
    ends = time.time() + limit_s if limit_s else 0.0
    given = {
        "articles": articles, "seconds": seconds, "rate": rate, "ivf_rows": ivf_rows, "clients": clients,
        "ends": ends,
    }  # fmt: skip
    chosen = _chosen(peers)
    with tempfile.TemporaryDirectory(prefix="dysra-search-") as folder:
        indexes = Path(work or folder).absolute()
        if any(name.startswith("store") for name in chosen):
            build_indexes(articles * PER_ARTICLE, ivf_rows, indexes)
        out = Path(kept or Path(folder, "result.json")).absolute()
        asked = {**given, "peers": chosen, "work": str(indexes), "out": str(out)}
        # Set before numpy and faiss are loaded: threads of their own for every caller would fight for the cores.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "infra.bench.search", json.dumps(asked)]
        # Every peer at every number of clients, and as long again for filling them.
        limit_s = 1_800.0 + 4 * seconds * len(chosen) * len(clients.split(","))
        subprocess.run(command, env=env, check=True, timeout=limit_s)
        result: dict[str, Any] = json.loads(out.read_text())
    return result


def _chosen(peers: str) -> list[str]:
    known = ["faiss flat", "store", "store alone"]
    if importlib.util.find_spec("lancedb") is not None:
        known.append("lancedb")
    chosen = peers.split(",") if peers else known
    if unknown := set(chosen) - set(known):
        raise UsageError(f"peers: {', '.join(sorted(unknown))} not known; here are {', '.join(known)}")
    return chosen


def measure(
    articles: int,
    seconds: float,
    rate: float,
    ivf_rows: int,
    clients: str,
    peers: list[str],
    work: str,
    out: str,
    ends: float = 0.0,
) -> None:
    """Build the peers one after the other, load each, and write all rows to `out` after each.

    `ends` (of the clock; 0: never): a row that would not be over by then is left out.
    """

    def late(more_s: float) -> bool:
        return bool(ends) and time.time() + more_s > ends

    def tell() -> None:
        result = {"bench": "search", "device": environment()["device"], "commit": commit(), "rows": rows,
                  "ratios": _ratios(rows, counts), "cores": os.cpu_count(), "left_out": left_out}  # fmt: skip
        partial = Path(f"{out}.part")
        partial.write_text(json.dumps(result))
        partial.replace(out)

    vectors = clustered(articles * PER_ARTICLE, SEED)
    generator = np.random.default_rng(3)
    questions = vectors[generator.integers(0, len(vectors), 256)].astype(np.float32)
    questions += 0.02 * generator.standard_normal(questions.shape, dtype=np.float32)
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    exact = nearest_rows(vectors, questions[:_EXACT])
    counts = [int(count) for count in clients.split(",")]
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dysra-lance-") as folder:
        makers: dict[str, Callable[[], Peer]] = {
            "faiss flat": lambda: Flat(vectors),
            "store": lambda: Store(vectors, ivf_rows, Path(work)),
            "store alone": lambda: Store(vectors, ivf_rows, Path(work), joined=False),
            "lancedb": lambda: Lance(vectors, folder),
        }
        for name in peers:
            if late(2 * seconds):
                left_out += [f"{name}, {count} clients" for count in counts]
                continue
            started = time.perf_counter()
            peer = makers[name]()
            built_s = time.perf_counter() - started
            found = [set(peer.search(question)) for question in questions[:_EXACT]]
            recall = sum(len(a & b) for a, b in zip(exact, found, strict=True)) / (K * len(found))
            for count in counts:
                if late(seconds + _JOIN_S):
                    left_out.append(f"{name}, {count} clients")
                    continue
                before = _turns(peer)
                row = load(peer, count, seconds, rate, questions)
                rows.append({"index": name, "chunks": len(vectors), **row, "recall_at_10": round(recall, 4),
                             "open_s": round(built_s, 1), **_joined(before, _turns(peer))})  # fmt: skip
                tell()
            del peer
        tell()


def _turns(peer: Peer) -> tuple[int, int]:
    queue = peer.queue if isinstance(peer, Store) else None
    return (0, 0) if queue is None else (queue.num_requests, queue.num_batches)


def _joined(before: tuple[int, int], after: tuple[int, int]) -> dict[str, float]:
    """How many searches were made as one, in the mean."""
    made = after[1] - before[1]
    return {"joined": round((after[0] - before[0]) / made, 2)} if made else {}


def _ratios(rows: list[dict[str, Any]], counts: list[int]) -> dict[str, float]:
    """The store's p99 over that of each other index, by the number of clients."""
    p99 = {(row["index"], row["clients"]): row["p99_ms"] for row in rows}
    ratios = {}
    for count in counts:
        for name in dict.fromkeys(row["index"] for row in rows):
            if name != "store" and p99.get((name, count)) and p99.get(("store", count)):
                key = f"search_p99_over_{name.replace(' ', '_')}_{count}_clients"
                ratios[key] = round(p99["store", count] / p99[name, count], 4)
    return ratios


def main() -> None:
    """Read the arguments and run: of `run`'s child one JSON object, of a person the module's text says which."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        measure(**json.loads(sys.argv[1]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of search.json")
    parser.add_argument(
        "--limit-s", type=float, default=0.0, help="seconds after which no row is begun; 0: none"
    )
    parser.add_argument(
        "--articles", type=int, default=500_000, help="of two chunks each, held from the start"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each row")
    parser.add_argument("--rate", type=float, default=200.0, help="articles a second that come meanwhile")
    parser.add_argument("--clients", default="1,8,64", help="how many ask at a time, one row each")
    parser.add_argument("--peers", default="", help="names, with commas; none: all that are installed")
    parser.add_argument("--work", default="", help="folder that keeps the store's index for the next run")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    result = run(
        articles=given.articles, seconds=given.seconds, rate=given.rate, clients=given.clients, peers=given.peers,
        work=given.work, kept=str(given.out / "search.json"), limit_s=given.limit_s,
    )  # fmt: skip
    sys.stdout.write(json.dumps(result["ratios"], indent=1) + "\n")


if __name__ == "__main__":
    main()
