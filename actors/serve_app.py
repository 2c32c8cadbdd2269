"""The Serve application: sessions and the HTTP layer before them, from Python or from a Serve YAML.

`actors.serve_app:build` is the YAML's `import_path`; its `args` are configuration sections.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from pydantic import TypeAdapter
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import (
    BackpressureConfig,
    ControllerOptions,
    HTTPOptions,
    ProxyLocation,
    RequestRouterConfig,
)
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from actors import front_door
from actors.api import build_api
from actors.hosts import ServeHosts
from actors.keys import Keys, check_open_door
from actors.serve_settings import ServeSettings
from actors.session_host import SessionHost
from actors.slot_router import slot_table
from actors.store_client import StoreClient, open_store
from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.kafka import reachable
from pipeline.session import SessionConfig

APP = "dysra"
_ROUTER = "actors.slot_router:SlotRouter"
_CONTROL_CALLS = 16
_INGRESS_REQUESTS = 256
_KEEP_ALIVE_S = 75
_HEALTH_PERIOD_S = 5.0
_GRACE_S = 10.0


class Ingress:
    """Takes HTTP requests and sends each to its session's owner. Holds nothing."""

    def __init__(self, settings: ServeSettings, sessions: Any) -> None:
        self._settings = settings
        self._sessions = sessions

    def __serve_build_asgi_app__(self) -> Any:
        """The application, made once in the replica."""
        config = self._settings.serve
        keys = None if config.keys_file is None else Keys(config.keys_file)
        hosts = ServeHosts(
            self._sessions,
            config.replicas,
            retry_after_s=config.retry_after_s,
            limit_s=config.answer_timeout_s + _GRACE_S,
        )
        return build_api(hosts, config, keys)


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve YAML; `args` holds configuration sections (serve, session, store, kafka…)."""
    return application(ServeSettings.from_sections(args))


def application(settings: ServeSettings) -> serve.Application:
    """The application of these settings."""
    config = settings.serve
    check_open_door(config.host, no_auth=config.no_auth, keys_file=config.keys_file)
    hosts = serve.deployment(
        SessionHost,
        name="SessionHost",
        num_replicas=config.replicas,
        # Pages and events stay reachable while all questions are taken.
        max_ongoing_requests=config.max_questions + _CONTROL_CALLS,
        max_queued_requests=2 * config.max_questions + _CONTROL_CALLS,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
        graceful_shutdown_timeout_s=config.drain_s,
        graceful_shutdown_wait_loop_s=1.0,
        # A deployment that differs in this alone keeps its replicas: Serve hands it to them (`reconfigure`).
        user_config={"session": TypeAdapter(SessionConfig).dump_python(settings.session, mode="json")},
        health_check_period_s=min(_HEALTH_PERIOD_S, config.health_timeout_s / 2),
        health_check_timeout_s=config.health_timeout_s,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER,  # type: ignore[arg-type]
            request_router_kwargs={"table": slot_table(config.slots, config.replicas)},
        ),
    )
    ingress: Any = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=_INGRESS_REQUESTS,
        max_queued_requests=_INGRESS_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=config.retry_after_s),
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=config.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
    )
    fixed = replace(settings, session=SessionConfig())
    return ingress.bind(fixed, hosts.bind(fixed, deferred=True))  # type: ignore[attr-defined,no-any-return]


@dataclass(frozen=True, slots=True)
class Deployed:
    """What `deploy` started: where it answers, and the store it reads."""

    url: str
    store: StoreClient


def check_ready(settings: ServeSettings) -> None:
    """Find in seconds what would stop `deploy`, before Ray and a model are started.

    Raises UsageError for an open door or a taken port, DependencyUnreachable if Kafka does not answer.
    """
    config = settings.serve
    check_open_door(config.host, no_auth=config.no_auth, keys_file=config.keys_file)
    _require_free(config.host, config.port)
    reachable(settings.kafka)


def deploy(settings: ServeSettings, *, timeout_s: float = 900.0, detached_store: bool = False) -> Deployed:
    """Start HTTP and the sessions in the connected Ray, and return once they answer.

    Raises UsageError for a taken port or settings that do not fit, DependencyUnreachable if Kafka, the store or a
    replica does not come up in time, with the reason.
    """
    config = settings.serve
    check_ready(settings)
    app = application(settings)
    store = open_store(settings.store, settings.embedder, settings.search, detached=detached_store)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        controller_options=ControllerOptions(runtime_env={"env_vars": front_door.ENV}),
        http_options=HTTPOptions(
            host=config.host,
            port=config.port,
            keep_alive_timeout_s=_KEEP_ALIVE_S,
            request_timeout_s=math.ceil(max(config.answer_timeout_s, config.events_s) + 3 * _GRACE_S),
        ),
    )
    _run(app)
    _wait_until_running(timeout_s)
    return Deployed(config.url, store)


def redeploy(settings: ServeSettings) -> None:
    """Give the running application other settings, without waiting: new replicas take the sessions over in turn."""
    _run(application(settings))


def _run(app: serve.Application) -> None:
    """Hand the application to Serve as a version that was never there.

    Serve draws the version from Python's shared random numbers: a process that seeds them would name two versions
    alike, and the later one would change no replica.
    """
    state = random.getstate()
    random.seed()
    try:
        # Not serve.run: that waits, without a limit, until the last former replica has drained.
        target = serve.RunTarget(target=app, name=APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
    finally:
        random.setstate(state)


def shutdown(timeout_s: float = 90.0) -> bool:
    """Drain the sessions (each saved) and stop Serve in the connected Ray; False if that took too long."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(RayServeException):
        serve.delete(APP, _blocking=False)
    drained = False
    while not drained and time.monotonic() < deadline:
        time.sleep(0.2)
        drained = APP not in serve.status().applications
    _stop_serve(deadline + _GRACE_S)
    return drained


def status() -> dict[str, Any]:
    """The application and its deployments as Serve sees them; empty if it does not run."""
    if not ray.is_initialized():
        return {}
    app = serve.status().applications.get(APP)
    if app is None:
        return {}
    return {
        "status": str(app.status),
        "message": app.message,
        "deployments": {name: str(d.status) for name, d in app.deployments.items()},
    }


def _stop_serve(deadline: float) -> None:
    """Stop Serve's controller and proxies.

    `serve.shutdown` alone waits for a controller that ends itself, which Ray reports on the terminal as a task
    that failed. So the controller is asked without waiting, and looked for until it is gone.
    """
    with contextlib.suppress(ValueError, RayError):
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=_GRACE_S)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    serve.shutdown()  # type: ignore[no-untyped-call]


def _wait_until_running(timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        app = serve.status().applications[APP]
        if app.status == ApplicationStatus.RUNNING:
            return
        if app.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            reasons = [d.message for d in app.deployments.values() if d.message] or [app.message]
            shutdown()
            raise DependencyUnreachable(f"the sessions could not be started: {_reason(reasons[0])}")
        time.sleep(0.2)
    shutdown()
    raise DependencyUnreachable(f"the sessions were not ready within {timeout_s:.0f} s")


def _reason(message: str) -> str:
    """The last line of a traceback says what went wrong."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port"
            ) from None
