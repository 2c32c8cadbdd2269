"""A local Ray for tests: started once, small, in a temp folder of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

OBJECT_STORE_BYTES = 150 * 1024 * 1024
_ATTEMPTS = 4


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """An embedded Ray of 8 logical CPUs in the namespace of DySRA, shut down at the end of the session."""
    import ray

    from infra.cluster import NAMESPACE

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
    yield
    ray.shutdown()
