"""The demo: the whole main job on this machine, from a broker that is started to answers that are cited."""

from infra.demo.job import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
