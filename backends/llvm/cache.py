"""The on-disk cache of object code, keyed by content. Called by the engine only.

A file holds a header (magic, BLAKE2b of the rest), the names of the symbols it defines, what else its users
must know of it, and the objects. Files are written under a temporary name and renamed, so that readers and
concurrent writers see a whole file or none. Whatever goes wrong (no permission, a full disk, corruption)
costs a recompilation and at most one warning, never an error.

Environment: `TRACEGRAD_CACHE_DIR` (default: the user's cache directory), `TRACEGRAD_CACHE=0` (off),
`TRACEGRAD_CACHE_MB` (size limit, default 512).
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...ir.dataclass import dataclass
from .digest import blake2b

_MAGIC = b"TGOBJ\x04\n"
_SUFFIX = ".tgo"
_TRIM_EVERY = 64  # writes of one process between two looks at the directory's size
_STALE_SECONDS = 3600.0  # a temporary file this old belongs to a writer that died


@dataclass(frozen=True)
class CachedObject:
    """Object files that are linked together, the symbols they define for others, and numbers that whoever
    compiled them wants to know when they are found again."""

    symbols: tuple[str, ...]
    objects: tuple[bytes, ...]
    facts: tuple[int, ...] = ()


class ObjectCache:
    """A directory of object files. Safe to share between threads and processes.

    - `directory`: created on first write.
    - `limit`: bytes kept; the least recently used files go first.
    """

    def __init__(self, directory: str | os.PathLike[str], limit: int = 512 << 20):
        self.directory = Path(directory)
        self.limit = limit
        self._writes = 0
        self._warned = False

    def path(self, key: str) -> Path:
        """Where the object of a key lives."""
        return self.directory / (key + _SUFFIX)

    def load(self, key: str) -> CachedObject | None:
        """The object stored under a key, or None: absent, unreadable or corrupt (then the file is removed).
        """
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(f"cannot read {path}: {error}")
            return None
        entry = _decode(data)
        if entry is None:
            self._warn(f"{path} is corrupt and will be made again")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # time of last use, for trimming; may be read-only
            os.utime(path)
        return entry

    def store(self, key: str, entry: CachedObject) -> bool:
        """Writes an object under a key. False, after one warning a process, when that is not possible."""
        temporary: str | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=self.directory)
            with os.fdopen(handle, "wb") as file:
                file.write(_encode(entry))
            os.replace(temporary, self.path(key))
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            self._warn(f"cannot write to {self.directory}: {error}")
            return False
        self._writes += 1
        if self._writes % _TRIM_EVERY == 1:
            self.trim()
        return True

    def trim(self) -> None:
        """Removes the least recently used files until the directory is below nine tenths of its limit."""
        files: list[tuple[float, int, str]] = []
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):  # another process may remove it meanwhile
                        info = entry.stat()
                        if entry.name.endswith(_SUFFIX):
                            files.append((info.st_mtime, info.st_size, entry.path))
                        elif entry.name.startswith(".tmp-") and time.time() - info.st_mtime > _STALE_SECONDS:
                            os.unlink(entry.path)
        except OSError:
            return
        total = sum(size for _, size, _ in files)
        if total <= self.limit:
            return
        for _, size, path in sorted(files):
            if total <= self.limit * 9 // 10:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"tracegrad's compile cache: {message}; code is compiled again where needed "
                          "(TRACEGRAD_CACHE_DIR moves the cache, TRACEGRAD_CACHE=0 turns it off)",
                          RuntimeWarning, stacklevel=4)


def _encode(entry: CachedObject) -> bytes:
    head = " ".join(map(str, entry.facts)) + "\n" + "\n".join(entry.symbols)
    body = b"".join(len(part).to_bytes(8, "little") + part for part in (head.encode(), *entry.objects))
    return _MAGIC + blake2b(body, digest_size=32).digest() + body


def _decode(data: bytes) -> CachedObject | None:
    start = len(_MAGIC) + 32
    body = data[start:]
    whole = data[:start] == _MAGIC + blake2b(body, digest_size=32).digest() and len(body) >= 8
    if not whole:
        return None
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        end = at + 8 + int.from_bytes(body[at : at + 8], "little")
        parts.append(body[at + 8 : end])
        at = end
    facts, *symbols = parts[0].decode().split("\n")
    return CachedObject(tuple(symbols), tuple(parts[1:]), tuple(map(int, facts.split())))


def default_cache() -> ObjectCache | None:
    """The cache that the environment asks for now; None when it is turned off or there is no place for one.
    """
    if os.environ.get("TRACEGRAD_CACHE", "1").lower() in ("0", "off", "no", "false"):
        return None
    directory = os.environ.get("TRACEGRAD_CACHE_DIR") or _user_directory()
    try:
        limit = int(float(os.environ.get("TRACEGRAD_CACHE_MB") or 512) * (1 << 20))
    except ValueError:
        limit = 512 << 20
    return _cache_at(directory, limit) if directory else None


@functools.lru_cache(maxsize=8)
def _cache_at(directory: str, limit: int) -> ObjectCache:
    return ObjectCache(directory, limit)


@functools.lru_cache(maxsize=1)
def _user_directory() -> str | None:
    import platformdirs  # slow, and not needed when the environment names a directory

    try:
        return os.path.join(platformdirs.user_cache_dir("tracegrad"), "objects")
    except (OSError, RuntimeError, KeyError):
        return None  # no home directory


@functools.lru_cache(maxsize=1)
def build_id() -> str:
    """A hash of the sources that decide what code is generated: name, size and time of the files of `ir` and
    `backends`.

    Part of every key, so that objects of another version, or of an edited tree, are never taken for current
    ones.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    digest = blake2b(digest_size=32)
    for room in ("ir", "backends"):
        for line in sorted(_sources(os.path.join(root, room), room)):
            digest.update(line.encode())
    return digest.hexdigest()[:16]


def _sources(folder: str, name: str) -> Iterator[str]:
    """A line for each Python file under a folder. pathlib would take ten times as long, at every start."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _sources(entry.path, f"{name}/{entry.name}")
            elif entry.name.endswith(".py"):
                with contextlib.suppress(OSError):
                    info = entry.stat()
                    yield f"{name}/{entry.name}:{info.st_size}:{info.st_mtime_ns}\n"


def object_key(*parts: str | bytes) -> str:
    """BLAKE2b over the parts, each with its length, so that no two lists of parts give one key."""
    digest = blake2b(digest_size=32)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
