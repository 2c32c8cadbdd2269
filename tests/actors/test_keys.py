"""API keys, the open door, and the rate of a tenant."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.keys import Keys, RateLimit, check_open_door, new_key
from pipeline.errors import UsageError


def test_new_key_names_its_tenant_and_is_not_in_the_file(tmp_path: Path) -> None:
    """A key opens for its tenant; the file holds a salted hash and only its owner may read it."""
    path = tmp_path / "keys.json"
    key = new_key(path, "desk-1")
    assert Keys(path).tenant(key) == ("desk-1", None)
    text = path.read_text()
    assert key not in text and key.rsplit("-", 1)[1] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "spoil", [lambda k: k[:-1], lambda k: k + "0", lambda k: "", lambda k: "dysra--", str.upper]
)
def test_wrong_key_opens_nothing(tmp_path: Path, spoil: object) -> None:
    """A key that is cut, longer, empty or otherwise wrong names no tenant."""
    path = tmp_path / "keys.json"
    key = new_key(path, "desk")
    assert Keys(path).tenant(spoil(key)) is None  # type: ignore[operator]


def test_keys_of_two_tenants_stay_apart_and_new_ones_work_at_once(tmp_path: Path) -> None:
    """Each key names its own tenant, also one that was added after the service had started."""
    path = tmp_path / "keys.json"
    first = new_key(path, "one")
    keys = Keys(path)
    second = new_key(path, "two", ["politics"])
    os.utime(path, ns=(1, 1))
    assert keys.tenant(first) == ("one", None)
    assert keys.tenant(second) == ("two", frozenset({"politics"}))


@pytest.mark.parametrize("tenant", ["", "UPPER", "a b", "../x", "-x", "x" * 41])
def test_bad_tenant_name_is_refused(tmp_path: Path, tenant: str) -> None:
    """A tenant's name is a plain word, since folders and logs carry it."""
    with pytest.raises(UsageError, match="tenant"):
        new_key(tmp_path / "keys.json", tenant)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys":[{"id":"x"}]}', '{"keys":[1]}'])
def test_broken_keys_file_is_named(tmp_path: Path, text: str) -> None:
    """A file that holds no keys is an error that names it, not an open door."""
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"keys\.json"):
        Keys(path)


def test_no_auth_is_for_loopback_alone(tmp_path: Path) -> None:
    """Without keys the service listens only where this machine alone reaches it."""
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.7"):
        check_open_door(host, no_auth=True, keys_file=None)
    for host in ("0.0.0.0", "10.0.0.1", "::", "news.example"):
        with pytest.raises(UsageError, match="anyone"):
            check_open_door(host, no_auth=True, keys_file=None)
    with pytest.raises(UsageError, match="--no-auth"):
        check_open_door("127.0.0.1", no_auth=False, keys_file=None)
    with pytest.raises(UsageError, match="does not exist"):
        check_open_door("0.0.0.0", no_auth=False, keys_file=tmp_path / "none.json")


def test_rate_refills_with_time_and_counts_each_tenant_apart() -> None:
    """A tenant that used up its minute waits for the refill; another is not held up by it."""
    now = [0.0]
    rate = RateLimit(60, clock=lambda: now[0])
    assert [rate.wait_s("a") for _ in range(60)] == [0.0] * 60
    assert rate.wait_s("a") == pytest.approx(1.0)
    assert rate.wait_s("b") == 0.0
    now[0] += 1.0
    assert rate.wait_s("a") == 0.0
    assert rate.wait_s("a") > 0
    assert all(RateLimit(0).wait_s("a") == 0.0 for _ in range(1_000))


def test_two_who_add_keys_at_once_lose_none(tmp_path: Path) -> None:
    """Each reads the file, adds its row and writes it: one after the other, whatever they do."""
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: new_key(path, f"tenant-{n}"), range(16)))
    keys = Keys(path)
    assert [keys.tenant(key) for key in made] == [(f"tenant-{n}", None) for n in range(16)]


def test_keys_of_a_later_version_are_refused_by_name(tmp_path: Path) -> None:
    """A file that a newer DySRA wrote is not read as if it held what this one knows; one without a version is."""
    path = tmp_path / "keys.json"
    key = new_key(path, "desk")
    body = json.loads(path.read_text())
    assert body["version"] == 1
    path.write_text(json.dumps({"keys": body["keys"]}))
    assert Keys(path).tenant(key) == ("desk", None)
    path.write_text(json.dumps({**body, "version": 2}))
    with pytest.raises(UsageError, match="version is 2"):
        Keys(path)
