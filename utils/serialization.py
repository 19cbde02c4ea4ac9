"""`save` and `load`: nested Python structures of tensors as one safetensors file.

Tensors are stored under dotted paths; the structure around them is JSON in the file's metadata. A flat
dictionary of tensors, such as `model.state_dict()`, is thus an ordinary safetensors file with PyTorch's
names, and one from elsewhere loads as such a dictionary. Nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from ..ir import dtypes
from ..ir.dtypes import DType
from ..runtime.buffers import from_array
from ..tracer.devices import on_device, resolved
from ..tracer.library import ArgumentError, ArgumentTypeError
from ..tracer.tensor import Size, Tensor, concrete, device
from . import safetensors
from .safetensors import FileError

_KEY = "tracegrad"  # of the structure in the metadata
_VERSION = 1
_DTYPES = {d.name: d for d in vars(dtypes).values() if isinstance(d, DType)}
_HOW_TO_CONVERT = (
    "for a state_dict, run `safetensors.torch.save_file(torch.load(path), 'model.safetensors')` where "
    "PyTorch is installed, or save it there with "
    "`safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`"
)


def save(obj: Any, f: Any) -> None:
    """Writes a structure to a file that `load`, and for dictionaries of tensors any reader of safetensors,
    reads.

    Args:
        obj: tensors, NumPy arrays, numbers, strings, bytes, None, dtypes, sizes and devices in dicts, lists,
            tuples and sets: state_dicts of modules and optimisers, and checkpoints of several of them.
        f: a path, which has the old contents until all of the new are written; or a binary file object.

    Raises:
        TracegradError: something of another type, or a structure that contains itself.
    """
    writer = _Writer(isinstance(obj, Mapping) and bool(obj) and all(_is_plain(k, v) for k, v in obj.items()))
    tree = writer.encode(obj, ())
    metadata = {"format": "pt", _KEY: json.dumps({"version": _VERSION, "tree": tree}, separators=(",", ":"))}
    if hasattr(f, "write"):
        safetensors.write(f, writer.arrays, metadata)
        return
    import tempfile  # loads compression libraries, and most programs never save

    path = _path(f, "save()")
    folder = os.path.dirname(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=folder or ".")
    except FileNotFoundError:
        raise FileNotFoundError(f"save(): there is no directory {folder!r}; make it first") from None
    try:
        with open(descriptor, "wb") as file:
            safetensors.write(file, writer.arrays, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def load(
    f: Any, map_location: Any = None, pickle_module: None = None, *, weights_only: bool = True,
    mmap: bool | None = None,
) -> Any:  # fmt: skip
    """What `save` wrote; a safetensors file from elsewhere gives a dict of tensors.

    Args:
        f: a path or a binary file object that can seek.
        map_location: the device that tensors are put on; the CPU if it is anything else.
        pickle_module: must be None: nothing is unpickled.
        weights_only, mmap: taken for compatibility; only data is ever loaded, and it is read, not mapped.

    Returns:
        The structure, with tensors that have memory of their own; those that shared memory do so again.

    Raises:
        TracegradError: the file is PyTorch's own format, another one, cut off or damaged.
    """
    if pickle_module is not None:
        raise ArgumentError("load(): nothing is unpickled here; leave out pickle_module")
    place = resolved(map_location) if isinstance(map_location, (str, device)) else None
    if hasattr(f, "read"):
        made = _loaded(f, getattr(f, "name", "the file"))
    else:
        path = _path(f, "load()")
        with open(path, "rb") as file:
            made = _loaded(file, path)
    return made if place is None else _moved(made, place)


def _moved(made: Any, place: str) -> Any:
    """What was loaded, with its tensors on a device."""
    if isinstance(made, Tensor):
        return on_device(made, place)
    if isinstance(made, dict):
        for k, v in made.items():
            made[k] = _moved(v, place)
        return made
    if isinstance(made, list):
        made[:] = [_moved(v, place) for v in made]
        return made
    return tuple(_moved(v, place) for v in made) if type(made) is tuple else made


def _loaded(file: IO[bytes], what: Any) -> Any:
    if not (hasattr(file, "seek") and hasattr(file, "tell")):
        raise ArgumentTypeError("load() needs a file that can seek; read it into an io.BytesIO")
    if isinstance(file, io.TextIOBase):
        raise ArgumentTypeError("load() needs a binary file; open it with mode 'rb'")
    here = file.tell()
    first = file.read(10)
    file.seek(here)
    # A header's length begins alike when it is 640, say, but has zeros after that.
    pickled = first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and any(first[4:8])
    if pickled or first[:4] == b"PK\x03\x04":
        raise FileError(
            f"{what} is in PyTorch's own format, which is pickled code and is never loaded here; "
            f"{_HOW_TO_CONVERT}"
        )
    arrays, metadata = safetensors.read(file, str(what))
    text = metadata.get(_KEY)
    if text is None:
        return {name: _tensor(a) for name, a in arrays.items()}
    try:
        description = json.loads(text)
        if description["version"] > _VERSION:
            raise FileError(f"{what} was written by a later version of tracegrad; update it")
        return _Reader(arrays).decode(description["tree"])
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as e:
        if isinstance(e, FileError):
            raise
        raise FileError(f"{what} is damaged: its structure can't be read ({e!r:.100})") from None


def _path(f: Any, who: str) -> str:
    try:
        return os.fsdecode(os.fspath(f))
    except TypeError:
        raise ArgumentTypeError(f"{who} takes a path or a binary file, got {type(f).__name__}") from None


def _mode(path: str) -> int:
    """Permissions for a file that takes the place of the one at `path`, or is new."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _tensor(array: np.ndarray) -> Tensor:
    return concrete(from_array(array))


def _is_plain(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


# --- structure ----------------------------------------------------------------------------------------------
#
# In the JSON tree None, bools, ints, floats and strings are themselves. Everything else is a list that begins
# with the name of its kind.


class _Writer:
    """Encodes a structure and collects its tensors.

    Args:
        every_name: store tensors that share memory under each of their names, so that other readers find all
            of them.

    Attributes:
        arrays: contents by the name they are stored under.
    """

    def __init__(self, every_name: bool) -> None:
        self.every_name = every_name
        self.arrays: dict[str, np.ndarray] = {}
        self.stored: dict[Any, tuple[str, Any]] = {}
        self.open: set[int] = set()

    def encode(self, x: Any, path: tuple[str, ...]) -> Any:
        """The JSON tree of `x`, which stands at a path."""
        if x is None or type(x) in (bool, int, float, str):
            return x
        if isinstance(x, Tensor):
            return self._tensor(x, path)
        if isinstance(x, (np.ndarray, np.generic)):
            kind = "array" if isinstance(x, np.ndarray) else "scalar"
            return [kind, self._store(np.asarray(x), path)]
        for kind, plain in _PLAIN.items():
            if isinstance(x, plain[0]):
                return [kind, plain[1](x)]
        if id(x) in self.open:
            raise ArgumentError(f"save(): the structure contains itself, at {_shown(path)}")
        self.open.add(id(x))
        try:
            return self._container(x, path)
        finally:
            self.open.discard(id(x))

    def _container(self, x: Any, path: tuple[str, ...]) -> Any:
        if isinstance(x, Mapping):
            keys = (*path, "key")
            entries = [[self.encode(k, keys), self.encode(v, (*path, str(k)))] for k, v in x.items()]
            if not isinstance(x, OrderedDict):
                return ["dict", entries]
            extra = getattr(x, "_metadata", None)  # versions of modules
            return ["ordered", entries, None if extra is None else self.encode(extra, (*path, "_metadata"))]
        kinds = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
        for kind, name in kinds.items():
            if isinstance(x, kind) and (type(x) is kind or kind is list):
                return [name, [self.encode(v, (*path, str(i))) for i, v in enumerate(x)]]
        raise ArgumentTypeError(
            f"save(): can't save {type(x).__name__} at {_shown(path)}; save its state_dict(), or numbers, "
            f"strings, tensors and dicts, lists and tuples of these"
        )

    def _tensor(self, t: Tensor, path: tuple[str, ...]) -> Any:
        grad = [True] if t.requires_grad and t.is_leaf else []
        view = tuple([v for v in t._view or () if v[0].name not in ("detach", "alias")])
        # The tensor stays in the table, so that no other storage can get its identity.
        name, _ = self.stored.setdefault((id(t._storage), repr(view)), ("", t))
        if name and not self.every_name:
            return ["tensor", name, *grad]
        array = t.detach()._array()
        made = self._store(array, path)
        if name:
            return ["same", made, name, *grad]
        self.stored[id(t._storage), repr(view)] = (made, t)
        return ["tensor", made, *grad]

    def _store(self, array: np.ndarray, path: tuple[str, ...]) -> str:
        if safetensors.dtype_name(array.dtype) is None:
            raise ArgumentTypeError(
                f"save(): can't save an array of {array.dtype} at {_shown(path)}; convert it to one of "
                f"{', '.join(_DTYPES)}"
            )
        name = base = ".".join(path) or "tensor"
        n = 1
        while name in self.arrays or name == "__metadata__":
            n += 1
            name = f"{base}#{n}"
        self.arrays[name] = array
        return name


def _shown(path: tuple[str, ...]) -> str:
    return "obj" + "".join(f"[{p!r}]" for p in path)


_PLAIN: dict[str, Any] = {
    "bytes": ((bytes, bytearray), lambda x: base64.b64encode(bytes(x)).decode()),
    "size": (Size, lambda x: list(x)),
    "dtype": (DType, lambda x: x.name),
    "device": (device, str),
    "complex": (complex, lambda x: [x.real, x.imag]),
    "int": (int, int),  # of subclasses, such as enumerations, the value
    "float": (float, float),
    "str": (str, str),
}


class _Reader:
    """Decodes a structure."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.tensors: dict[str, Tensor] = {}

    def decode(self, tree: Any) -> Any:
        """The structure of a JSON tree."""
        if not isinstance(tree, list):
            return tree
        kind, *parts = tree
        return getattr(self, f"_{kind}")(*parts) if kind in _KINDS else _raise_unknown(kind)

    def _items(self, entries: list[Any]) -> list[Any]:
        return [(self.decode(k), self.decode(v)) for k, v in entries]

    def _dict(self, entries: list[Any]) -> Any:
        return dict(self._items(entries))

    def _ordered(self, entries: list[Any], extra: Any) -> Any:
        made: Any = OrderedDict(self._items(entries))
        if extra is not None:
            made._metadata = self.decode(extra)
        return made

    def _list(self, entries: list[Any]) -> Any:
        return [self.decode(e) for e in entries]

    def _tuple(self, entries: list[Any]) -> Any:
        return tuple(self._list(entries))

    def _set(self, entries: list[Any]) -> Any:
        return set(self._list(entries))

    def _frozenset(self, entries: list[Any]) -> Any:
        return frozenset(self._list(entries))

    def _tensor(self, name: str, grad: bool = False) -> Tensor:
        first = self.tensors.get(name)
        if first is None:
            first = self.tensors[name] = _tensor(self.arrays[name])
            made = first
        else:
            made = first.detach()
        return made.requires_grad_() if grad and not made.requires_grad else made

    def _same(self, name: str, as_name: str, grad: bool = False) -> Tensor:
        return self._tensor(as_name, grad)

    def _array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def _scalar(self, name: str) -> Any:
        return self.arrays[name][()]

    def _bytes(self, text: str) -> bytes:
        return base64.b64decode(text)

    def _size(self, sizes: list[int]) -> Any:
        return Size(sizes)

    def _dtype(self, name: str) -> DType:
        return _DTYPES[name]

    def _device(self, name: str) -> device:
        return device(name)

    def _complex(self, parts: list[float]) -> complex:
        return complex(*parts)

    def _int(self, x: Any) -> Any:
        return x

    _float = _str = _int


_KINDS = frozenset(n[1:] for n in vars(_Reader) if n[0] == "_" != n[1] and n != "_items")


def _raise_unknown(kind: Any) -> Any:
    raise FileError(f"the file holds something unknown to this version of tracegrad: {kind!r:.40}")
