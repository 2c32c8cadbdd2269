"""API keys and what a tenant may do: keys are kept as salted hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import UsageError
from pipeline.shared_files import locked, replace_file

LOCAL_TENANT = "local"
"""Who asks where no keys are needed."""
_PREFIX = "dysra"
_VERSION = 1
_LOCK_S = 10.0
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class _Key:
    tenant: str
    salt: bytes
    digest: bytes
    streams: frozenset[str] | None


class Keys:
    """The keys of one file. The file is read again when it changes, so new keys work at once; while it is missing
    or cannot be read nobody is let in (UsageError says why, for the operator's log)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, _Key] = {}
        self._reload()

    def tenant(self, presented: str) -> tuple[str, frozenset[str] | None] | None:
        """The tenant of a key and the streams that it is limited to (None: all); None for a wrong key."""
        self._reload()
        prefix, _, rest = presented.partition("-")
        key_id, _, secret = rest.partition("-")
        known = self._keys.get(key_id) if prefix == _PREFIX else None
        # A key that is not there costs the same work as a wrong one.
        salt, digest = (known.salt, known.digest) if known else (b"\0" * 16, b"\0" * 32)
        right = hmac.compare_digest(_digest(salt, secret), digest)
        return (known.tenant, known.streams) if known is not None and right else None

    def _reload(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            raise UsageError(
                f"keys file {self._path} does not exist; make a key with "
                f"`dysra serve --keys {self._path} --new-key TENANT`"
            ) from None
        except OSError as error:
            raise UsageError(f"keys file {self._path} cannot be read: {error.strerror}") from None
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._keys = {row["id"]: _key(row) for row in _rows(self._path)}
            self._stamp = stamp


def new_key(path: Path, tenant: str, streams: list[str] | None = None) -> str:
    """Make a key for `tenant`, add its hash to the file (mode 600), and return the key: it is shown only once."""
    if not _TENANT.fullmatch(tenant):
        raise UsageError(
            f"tenant is {tenant!r}; allowed: 1 to 40 of a-z, 0-9, '-' and '_', beginning with a letter or digit"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of two processes that read the file before either wrote it, one key would go.
    with locked(path.with_name(f".{path.name}.lock"), _LOCK_S, UsageError, path):
        return _add_key(path, tenant, streams)


def _add_key(path: Path, tenant: str, streams: list[str] | None) -> str:
    rows = _rows(path) if path.exists() else []
    key_id, secret, salt = secrets.token_hex(4), secrets.token_hex(24), secrets.token_bytes(16)
    row: dict[str, Any] = {
        "id": key_id,
        "tenant": tenant,
        "salt": salt.hex(),
        "sha256": _digest(salt, secret).hex(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if streams:
        row["streams"] = sorted(streams)
    body = orjson.dumps({"version": _VERSION, "keys": [*rows, row]}, option=orjson.OPT_INDENT_2)
    replace_file(path, body, mode=0o600)
    return f"{_PREFIX}-{key_id}-{secret}"


def check_open_door(host: str, *, no_auth: bool, keys_file: Path | None) -> None:
    """Raise UsageError unless the service has keys, or is asked to do without on a loopback address."""
    if keys_file is not None:
        if no_auth:
            raise UsageError("both a keys file and no_auth are given; take one")
        Keys(keys_file)
        return
    if not no_auth:
        raise UsageError(
            "no keys file is given: name one (--keys FILE, keys made by --new-key TENANT), or use --no-auth on a "
            "loopback address"
        )
    if not is_loopback(host):
        raise UsageError(f"--no-auth on {host} would let anyone in; use --keys FILE, or listen on 127.0.0.1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class RateLimit:
    """A bucket a tenant: `per_minute` requests a minute, as many at once; 0 lets everything pass."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, tenant: str) -> float:
        """0 if the request may pass (it is counted), else the seconds until the next one may."""
        if self._per_minute == 0:
            return 0.0
        now = self._clock()
        level, last = self._buckets.get(tenant, (float(self._per_minute), now))
        level = min(float(self._per_minute), level + (now - last) * self._per_minute / 60.0)
        if level < 1.0:
            self._buckets[tenant] = (level, now)
            return (1.0 - level) * 60.0 / self._per_minute
        self._buckets[tenant] = (level - 1.0, now)
        return 0.0


def _digest(salt: bytes, secret: str) -> bytes:
    # The secret has 192 random bits, so a slow hash would add nothing.
    return hashlib.sha256(salt + secret.encode("utf-8", "surrogatepass")).digest()


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        body = orjson.loads(path.read_bytes())
        version = body.get("version", 1)
        if not isinstance(version, int) or not 1 <= version <= _VERSION:
            raise ValueError(f"its version is {version!r}; this DySRA reads up to {_VERSION}")
        rows = body["keys"]
        for row in rows:
            _key(row)
    except OSError as error:
        raise UsageError(f"keys file {path} cannot be read: {error.strerror}") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"keys file {path} cannot be read ({error}); make it with --new-key TENANT"
        ) from None
    return list(rows)


def _key(row: dict[str, Any]) -> _Key:
    if not _ID.fullmatch(row["id"]) or not _TENANT.fullmatch(row["tenant"]):
        raise ValueError(f"key {row['id']!r} of tenant {row['tenant']!r}")
    streams = row.get("streams")
    allowed = frozenset(streams) if streams else None
    return _Key(row["tenant"], bytes.fromhex(row["salt"]), bytes.fromhex(row["sha256"]), allowed)
