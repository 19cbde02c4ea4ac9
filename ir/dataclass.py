"""`dataclass` and its companions as in the standard library, at a small part of its time.

The standard decorator writes and compiles up to six functions for every class that it is put on, which was an
eighth of what importing the package and its compiler took. Here methods read the class's list of fields, and
`__init__` is written when the first instance is made. Anyone in the package may use it; type checkers see the
standard one. Known are `eq`, `frozen`, `slots`, `__post_init__`, `field(default, default_factory, init)` and
inheritance. The standard `fields`, `replace` and `asdict` work on these classes.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace

_MISSING: Any = object()
_set: Any = object.__setattr__


class Field:
    """A field of a class: what its `__init__` puts there when nothing is given."""

    __slots__ = ("default", "factory", "init", "name")

    def __init__(self, default: Any, factory: Any, init: bool) -> None:
        self.default, self.factory, self.init = default, factory, init
        self.name = ""


class _StandardFields:
    """What the standard library asks a class for; made when it does."""

    def __get__(self, obj: Any, cls: Any) -> dict[str, Any]:
        import dataclasses

        made = []
        for f in _fields(cls):
            given: dict[str, Any] = {} if f.default is _MISSING else {"default": f.default}
            given |= {} if f.factory is _MISSING else {"default_factory": f.factory}
            made.append((f.name, Any, dataclasses.field(init=f.init, kw_only=True, **given)))
        standard: Any = dataclasses.make_dataclass(cls.__name__, made)
        cls.__dataclass_fields__ = standard.__dataclass_fields__
        return cls.__dataclass_fields__


def _fields(cls: Any) -> list[Field]:
    return cls.__fields__


def _first_init(cls: Any) -> Any:
    """An `__init__` that puts the one of `cls` in its own place and calls it."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init = cls.__init__ = _init(cls)
        init(self, *args, **kwargs)

    return __init__


def _init(cls: Any) -> Any:
    """The `__init__` that assigns the fields of `cls` in order."""
    names: dict[str, Any] = {"_MISSING": _MISSING, "_set": _set}
    parameters, body = ["self"], []
    for k, f in enumerate(_fields(cls)):
        value = f.name
        if f.factory is not _MISSING:
            names[f"_f{k}"] = f.factory
            value = f"_f{k}() if {value} is _MISSING else {value}" if f.init else f"_f{k}()"
        if f.init:
            names[f"_d{k}"] = f.default
            given = f.default is _MISSING and f.factory is _MISSING
            parameters.append(f.name if given else f"{f.name}=_d{k}")
        elif f.factory is _MISSING:
            continue
        body.append(f"_set(self, {f.name!r}, {value})" if cls.__frozen__ else f"self.{f.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n  " + "\n  ".join(body or ["pass"]), names)
    made = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


def _repr(self: Any) -> str:
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in _fields(self))
    return f"{self.__class__.__qualname__}({shown})"


def _frozen(self: Any, name: str, *value: Any) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot change field {name!r} of a {type(self).__qualname__}")


def _comparison(key: Any) -> Any:
    def __eq__(self: Any, other: Any) -> Any:
        return key(self) == key(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _make(cls: Any, eq: bool, frozen: bool, slots: bool) -> Any:
    fields = {f.name: f for f in getattr(cls, "__fields__", ())}
    own = []
    for name, annotation in cls.__annotations__.items():
        if str(annotation).startswith("ClassVar"):
            continue
        given = cls.__dict__.get(name, _MISSING)
        made = given if type(given) is Field else Field(given, _MISSING, True)
        made.name = name
        fields[name] = made
        own.append(name)
        if given is not _MISSING:
            if slots or made.default is _MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, made.default)
    if slots:
        inside = {k: v for k, v in cls.__dict__.items() if k not in ("__dict__", "__weakref__")}
        inside |= {"__slots__": tuple(own), "__qualname__": cls.__qualname__}
        cls = type(cls)(cls.__name__, cls.__bases__, inside)
    cls.__fields__ = list(fields.values())
    cls.__frozen__ = frozen
    cls.__match_args__ = tuple(f.name for f in cls.__fields__ if f.init)
    cls.__dataclass_fields__ = _StandardFields()
    defined = cls.__dict__
    if "__init__" not in defined:
        cls.__init__ = _first_init(cls)
    if "__repr__" not in defined:
        cls.__repr__ = _repr
    if eq:
        only = [f.name for f in cls.__fields__]
        key = attrgetter(*only) if only else lambda self: ()
        if "__eq__" not in defined:
            cls.__eq__ = _comparison(key)
        if defined.get("__hash__") is None:
            cls.__hash__ = (lambda self: hash(key(self))) if frozen else None
    if frozen:
        cls.__setattr__ = cls.__delattr__ = _frozen
    return cls


if not TYPE_CHECKING:

    def field(*, default: Any = _MISSING, default_factory: Any = _MISSING, init: bool = True) -> Any:
        """A field with a default that is made for each instance, or that `__init__` does not take."""
        return Field(default, default_factory, init)

    def replace(obj: Any, /, **changes: Any) -> Any:
        """A copy of `obj` in which the fields named have other values."""
        kept = {f.name: getattr(obj, f.name) for f in _fields(obj) if f.init and f.name not in changes}
        return obj.__class__(**kept, **changes)

    def dataclass(
        cls: Any = None, /, *, eq: bool = True, frozen: bool = False, slots: bool = False
    ) -> Any:
        """Gives a class whose annotations are its fields `__init__`, `__repr__` and, unless `eq` is false,
        `__eq__`; `frozen` forbids assignments and gives a hash; `slots` makes instances without a dict."""
        if cls is None:
            return lambda cls: _make(cls, eq, frozen, slots)
        return _make(cls, eq, frozen, slots)
