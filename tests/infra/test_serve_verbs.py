"""`dysra serve`, `ask` and `summarize`: wrong use ends quickly, with a code and a way out."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from actors.keys import Keys
from tests.pipeline.session.support import STREAM
from tests.verbs import dysra


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve"], "--no-auth"),
        (["serve", "--no-auth", "--host", "0.0.0.0"], "anyone"),
        (["serve", "--keys", "missing.json"], "--new-key"),
        (["serve", "--no-auth", "--port", "70000"], "port is 70000"),
        (["serve", "--no-auth", "--replicas", "0"], "replicas is 0"),
        (["serve", "--no-auth", "--start", "yesterday"], "start"),
        (["serve", "--new-key", "desk"], "--keys FILE"),
        (["ask", "s", "q", "--url", "ftp://x"], "--url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_ends_with_2(arguments: list[str], said: str) -> None:
    """A wrong argument is named, with what to give instead."""
    ended = dysra(*arguments)
    assert ended.exit_code == 2 and said in ended.stderr, ended.stderr


def test_nothing_that_answers_ends_with_3(free_port: int) -> None:
    """Where no service listens the client says how to start one, as JSON too."""
    url = f"http://127.0.0.1:{free_port}"
    for verb in (["ask", STREAM, "What?"], ["summarize", STREAM]):
        ended = dysra(*verb, "--url", url, "--json")
        assert ended.exit_code == 3 and "dysra serve" in ended.stderr
        assert json.loads(ended.stdout.splitlines()[-1])["exit_code"] == 3


def test_broker_that_does_not_answer_ends_with_3(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve says that the broker is missing before it loads anything."""
    monkeypatch.setenv("DYSRA_KAFKA_CONNECT_TIMEOUT_S", "1")
    ended = dysra(
        "serve",
        "--no-auth",
        "--bootstrap-servers",
        f"127.0.0.1:{free_port}",
        "--store",
        str(tmp_path / "store"),
    )
    assert ended.exit_code == 3 and "dysra kafka up" in ended.stderr, ended.stderr


def test_new_key_is_shown_once_and_works(tmp_path: Path) -> None:
    """The key is printed, its hash kept in a file that only the owner reads."""
    path = tmp_path / "keys.json"
    ended = dysra("serve", "--keys", str(path), "--new-key", "desk", "--json")
    shown = json.loads(ended.stdout.splitlines()[-1])
    assert ended.exit_code == 0 and Keys(path).tenant(shown["key"]) == ("desk", None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


class _Elsewhere(BaseHTTPRequestHandler):
    """Answers like services that are not ours, or that refuse."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status = int(self.path.split("/")[3])
        body = b"<html>" if status == 200 else json.dumps({"error": {"message": f"said {status}"}}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """A service that answers with the status that the stream's name says."""
    server = HTTPServer(("127.0.0.1", 0), _Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code"), [(200, 2), (401, 2), (404, 2), (422, 2), (429, 3), (503, 3), (500, 1)]
)
def test_refusals_have_their_exit_codes(elsewhere: str, status: int, code: int) -> None:
    """What the service says is told, and the exit code says whose turn it is."""
    from infra.client import SessionClient
    from pipeline.errors import DysraError

    with SessionClient(elsewhere) as client, pytest.raises(DysraError) as raised:
        client.ask(str(status), {"question": "x"})
    assert raised.value.exit_code == code
    assert (f"said {status}" if status != 200 else "not a DySRA service") in str(raised.value)


def test_serve_yaml_holds_settings_that_are_valid(tmp_path: Path) -> None:
    """The shipped Serve YAML is of Serve's form, and its arguments are sections that the application takes."""
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from actors.keys import new_key
    from actors.serve_app import build as build_application
    from infra import dashboards

    path = dashboards.FOLDER.parent / "k8s" / "serve.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    (application,) = schema.applications
    assert application.import_path == "actors.serve_app:build"
    arguments = dict(application.args)
    new_key(tmp_path / "keys.json", "desk")
    arguments["serve"] = {**arguments["serve"], "keys_file": str(tmp_path / "keys.json")}
    assert build_application(arguments) is not None


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"colour": {}}, "colour"),
        ({"serve": {"prot": 1}}, "serve.prot"),
        ({"serve": {"port": "x"}}, "serve.port"),
        ({"session": {"start": "never"}}, "start"),
    ],
    ids=str,
)
def test_wrong_yaml_arguments_are_named(sections: dict[str, object], named: str) -> None:
    """A Serve YAML with a wrong section, field or value says which."""
    from actors.serve_settings import ServeSettings
    from pipeline.errors import UsageError

    with pytest.raises(UsageError, match=named):
        ServeSettings.from_sections(sections)  # type: ignore[arg-type]
