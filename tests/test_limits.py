"""Nothing waits for ever and nothing queues without bound: every such call in what runs in production is seen.

Trainings and benchmarks (`infra/training`, `infra/bench`) are watched by whoever started them and are left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("actors", "infra", "models", "pipeline", "rl")
LEFT_OUT = ("infra/training/", "infra/bench/")

WAITS = {"get", "wait", "join", "result", "acquire", "communicate", "wait_merging_threads"}
"""Methods that wait for ever where they are given nothing."""
LIMITED = {
    "ray.get": "timeout", "ray.wait": "timeout", "subprocess.run": "timeout", "subprocess.check_output": "timeout",
    "subprocess.check_call": "timeout", "urllib.request.urlopen": "timeout", "urlopen": "timeout",
    "socket.create_connection": "timeout", "httpx.Client": "timeout", "httpx.AsyncClient": "timeout",
    "httpx.get": "timeout", "httpx.post": "timeout", "sqlite3.connect": "timeout",
    "asyncio.wait": "timeout", "concurrent.futures.wait": "timeout", "futures.wait": "timeout",
    "as_completed": "timeout", "asyncio.as_completed": "timeout", "futures.as_completed": "timeout",
}  # fmt: skip
AWAITED = {"asyncio.gather", "asyncio.shield", "asyncio.to_thread", "run_in_executor"}
"""What `await` waits for as long as it takes, as it does for a future that has a name."""
QUEUES = {"Queue": "maxsize", "PriorityQueue": "maxsize", "LifoQueue": "maxsize", "deque": "maxlen"}

MAY_WAIT = {
    # idle threads, which have nothing to do until something comes; each is ended by its owner's `close`
    "actors/embedder.py: self._condition.wait": "waits for texts; `close` wakes it",
    "actors/reader_actor.py: self._condition.wait": "waits for rows; `close` wakes it",
    "pipeline/session/model_thread.py: self._jobs.get": "waits for jobs; `close` puts one",
    # what is waited for has a limit of its own
    "actors/store_search.py: await ref": "within `asyncio.wait_for` and `asyncio.wait` of both callers",
    "actors/api_health.py: await asyncio.gather": "each replica is asked for _REPLICA_S at most",
    "actors/api_health.py: await asyncio.shield": "the same",
    "actors/session_service.py: await run_in_executor": "its callers, HTTP's (hosts.py) and `ask`, have a limit",
    "actors/session_host.py: await asyncio.to_thread": "settings: the replica answers as before until its disk has "
    "given them; and a look at Ray's head, at whose calls Ray has a limit",
    "pipeline/store/lexical.py: writer.wait_merging_threads": "who closes a shard has one (actors/store_actors.py)",
    "pipeline/store/core.py: self.lexical_lock.acquire": "one commit or carry at a time, as of `with` a lock",
    "pipeline/store/shard.py: core.maintenance.acquire": "back-pressure: until the sealing under way ends or fails",
    # not a wait
    "actors/store_search.py: task.result": "of tasks that `asyncio.wait` has told are done",
    "pipeline/session/resident.py: folder.acquire": "takes a lease at once",
    "infra/demo/start.py: started.result": "of a broker's start, which has a limit of its own",
    "models/cache/eviction.py: leaving.vectors.result": "at most SOLVING_LIMIT_S, of itself",
    "models/cache/full_layer.py: known.vectors.result": "the same",
    "models/cache/compressor.py: self.wait": "the same",
}
MAY_GROW = {
    "actors/session_service.py: asyncio.Queue": "as many events as an answer has tokens",
    "actors/ingest.py: queue.SimpleQueue": "pausing partitions bounds what is under way (ingest.max_inflight_…)",
    "actors/ingest.py: deque": "the same",
    "actors/store_watch.py: deque": "ends with an error at ingest.max_restarts",
    "pipeline/replay.py: deque": "what stands behind the records in flight, which the publisher bounds",
    "pipeline/session/tail.py: deque": "filled when it is empty, by one poll of at most 500 records",
    "pipeline/session/model_thread.py: queue.PriorityQueue": "one job a caller, at most serve.max_questions",
    "pipeline/session/model_thread.py: queue.SimpleQueue": "as many items as an answer has tokens",
    "pipeline/store/core.py: deque": "carried to the index by the appender above _MAX_WAITING",
    "pipeline/store/recovery.py: deque": "as many changes as the state keeps (bounded where they are noted)",
    "pipeline/store/joined.py: deque": "one a caller; Ray bounds the callers of a shard",
}


def _name(node: ast.expr) -> str:
    """The dotted name of an expression, as far as it is names."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Subscript):  # deque[int]()
        return _name(node.value)
    return ".".join(reversed([*parts, node.id if isinstance(node, ast.Name) else "?"]))


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, bool]]:
    """Every call, as of `_nodes`."""
    return ((node, limited) for node, limited in _nodes(tree) if isinstance(node, ast.Call))


def _awaits(tree: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """Every expression that is awaited, as of `_nodes`."""
    return ((node.value, limited) for node, limited in _nodes(tree) if isinstance(node, ast.Await))


def _nodes(node: ast.AST, limited: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node with whether it stands inside an `async with asyncio.timeout…`."""
    if isinstance(node, ast.AsyncWith):
        names = [
            _name(item.context_expr.func) for item in node.items if isinstance(item.context_expr, ast.Call)
        ]
        limited = limited or any(name.startswith("asyncio.timeout") for name in names)
    yield node, limited
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child, limited)


def _locks(call: ast.Call, last: str) -> bool:
    """Whether an `acquire` that is given something still waits for ever."""
    given = {word.arg: word.value for word in call.keywords}
    blocking = call.args[0] if call.args else given.get("blocking")
    waits = not (isinstance(blocking, ast.Constant) and blocking.value is False)
    return last == "acquire" and waits and "timeout" not in given and len(call.args) < 2


def endless(source: str, path: str) -> list[str]:
    """Calls in a module that may wait for ever, and what is awaited so."""
    found = []
    tree = ast.parse(source)
    for call, limited in _calls(tree):
        name, given = _name(call.func), {word.arg: word.value for word in call.keywords}
        last = name.rpartition(".")[2]
        bare = not call.args and not given
        never = any(
            word in ("timeout", "timeout_s") and isinstance(value, ast.Constant) and value.value is None
            for word, value in given.items()
        )
        waits = last in WAITS and (bare or never or _locks(call, last))
        lacks = LIMITED.get(name)
        if (isinstance(call.func, ast.Attribute) and waits and not limited) or (
            lacks is not None and (lacks not in given or never)
        ):
            found.append(f"{path}: {name}")
    for awaited, limited in _awaits(tree):
        called = isinstance(awaited, ast.Call)
        name = _name(awaited.func if isinstance(awaited, ast.Call) else awaited)
        last = name.rpartition(".")[2]
        if not limited and (not called or name in AWAITED or last in AWAITED):
            found.append(f"{path}: await {last if last in AWAITED else name}")
    return found


def unbounded(source: str, path: str) -> list[str]:
    """Queues in a module that may grow for ever."""
    found = []
    for call, _ in _calls(ast.parse(source)):
        name, given = _name(call.func), {word.arg for word in call.keywords}
        last = name.rpartition(".")[2]
        bound = QUEUES.get(last)
        by_place = len(call.args) >= (2 if last == "deque" else 1)
        if last == "SimpleQueue" or (bound is not None and bound not in given and not by_place):
            found.append(f"{path}: {name}")
    return found


def _modules() -> Iterator[tuple[str, str]]:
    for folder in OURS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith(LEFT_OUT):
                yield name, path.read_text(encoding="utf-8")


def test_every_wait_has_a_limit() -> None:
    """Give it one, or name it in MAY_WAIT with the reason why it ends."""
    found = {one for name, source in _modules() for one in endless(source, name)}
    assert (sorted(found - MAY_WAIT.keys()), sorted(MAY_WAIT.keys() - found)) == ([], [])


def test_every_queue_is_bounded() -> None:
    """Give it a bound, or name it in MAY_GROW with what bounds it."""
    found = {one for name, source in _modules() for one in unbounded(source, name)}
    assert (sorted(found - MAY_GROW.keys()), sorted(MAY_GROW.keys() - found)) == ([], [])


@pytest.mark.parametrize(
    "line",
    [
        "future.result()", "thread.join()", "event.wait()", "items.get()", "lock.acquire()", "ray.get(ref)",
        "ray.wait(refs)", "subprocess.run(command, check=True)", "httpx.Client(base_url=url)",
        "process.communicate()",
        "async def f():\n    async with lock:\n        await items.get()",
        "future.result(timeout=None)", "lock.acquire(True)", "lock.acquire(blocking=behind)",
        "as_completed(futures)", "asyncio.wait(tasks)", "async def f():\n    await reply",
        "async def f():\n    await asyncio.gather(*tasks)",
        "async def f():\n    await loop.run_in_executor(None, job)",
    ],
)  # fmt: skip
def test_an_endless_wait_is_seen(line: str) -> None:
    """Each way of waiting for ever."""
    assert endless(f"import a\n{line}", "x.py") and not unbounded(line, "x.py")


@pytest.mark.parametrize(
    "line",
    [
        "future.result(5)", "thread.join(timeout=1)", "{}.get('a')", "', '.join(names)", "ray.get(ref, timeout=5)",
        "async def f():\n    async with asyncio.timeout_at(end):\n        await items.get()",
        "lock.acquire(blocking=False)", "lock.acquire(False)", "lock.acquire(timeout=3)",
        "asyncio.wait(tasks, timeout=1)",
        "async def f():\n    async with asyncio.timeout(3):\n        await reply",
        "async def f():\n    await asyncio.wait_for(asyncio.gather(*tasks), 3)",
    ],
)  # fmt: skip
def test_a_limited_wait_is_none(line: str) -> None:
    """Nor are methods of the same names that wait for nothing."""
    assert endless(line, "x.py") == []


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("queue.Queue()", True), ("asyncio.Queue()", True), ("SimpleQueue()", True), ("deque[int]()", True),
        ("deque(rows)", True), ("queue.Queue(maxsize=4)", False), ("queue.Queue(4)", False),
        ("deque(maxlen=3)", False), ("deque((), 3)", False),
    ],
)  # fmt: skip
def test_an_unbounded_queue_is_seen(line: str, seen: bool) -> None:
    """Each kind, and none that has a bound."""
    assert bool(unbounded(line, "x.py")) is seen
