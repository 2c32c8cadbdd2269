"""A local Ray for tests: started once, small, in a temp folder, and ended behind the last test that uses it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

OBJECT_STORE_BYTES = 150 * 1024 * 1024
_ATTEMPTS = 4
_LEFT = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """An embedded Ray of 8 logical CPUs in the namespace of DySRA, shut down once no test of this run needs it."""
    import ray

    from infra.cluster import NAMESPACE

    before = signal.getsignal(signal.SIGTERM)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(
                num_cpus=8,
                namespace=NAMESPACE,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
            break
        # On a busy machine: the raylet ends itself if its agent has not written its port within 15 s.
        except Exception:
            ray.shutdown()
            if attempt == _ATTEMPTS:
                raise
    signal.signal(signal.SIGTERM, before)  # Ray leaves a handler of its own behind
    yield
    ray.shutdown()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the tests that use it; a worker of `--dist loadfile` runs all of them or none (tests/conftest.py)."""
    session.config.stash[_LEFT] = sum(map(_uses_ray, session.items)) or -1


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Shut it down behind the last of them: a dozen processes look after an idle Ray."""
    stash = item.config.stash
    stash[_LEFT] -= _uses_ray(item)
    # a module's fixtures end first
    if stash[_LEFT] == 0 and (nextitem is None or nextitem.path != item.path):
        import ray

        stash[_LEFT] = -1
        ray.shutdown()


def _uses_ray(item: pytest.Item) -> bool:
    return "local_ray" in getattr(item, "fixturenames", ())
