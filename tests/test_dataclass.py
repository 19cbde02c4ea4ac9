"""The package's own `dataclass`: equal to the standard one in what the package uses of it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest
from tracegrad.ir import dataclass as ours


def classes(module: Any) -> list[Any]:
    """The same classes under one module's decorators."""

    @module.dataclass
    class Plain:
        a: int
        b: str = "x"
        c: list[int] = module.field(default_factory=list)
        d: int = module.field(init=False)
        e: float = module.field(default=2.0)
        count: ClassVar[int] = 7

        def __post_init__(self) -> None:
            self.d = 10 * self.a

    @module.dataclass(frozen=True)
    class Frozen:
        a: int = 1
        b: tuple[int, ...] = ()

        @property
        def total(self) -> int:
            return self.a + sum(self.b)

    @module.dataclass(frozen=True)
    class Below(Frozen):
        c: str = "c"
        a: int = 5

    @module.dataclass(eq=False, slots=True)
    class Slots:
        a: int
        b: Any = None

    @module.dataclass
    class Empty:
        pass

    return [Plain, Frozen, Below, Slots, Empty]


PAIRS = list(zip(classes(ours), classes(dataclasses)))


def shown(x: Any) -> str:
    return repr(x).replace("classes.<locals>.", "")


@pytest.mark.parametrize("k, args, kwargs", [
    (0, (3,), {}), (0, (3, "y"), {"c": [1]}), (0, (), {"b": "z", "a": 0, "e": 1.5}),
    (1, (), {}), (1, (4, (1, 2)), {}), (2, (), {}), (2, (1,), {"c": "d"}),
    (3, (1,), {}), (3, (1, 2), {}), (4, (), {}),
])  # fmt: skip
def test_instances_are_those_of_the_standard_library(k: int, args: Any, kwargs: Any) -> None:
    mine, theirs = (cls(*args, **kwargs) for cls in PAIRS[k])
    assert shown(mine) == shown(theirs)
    assert dataclasses.asdict(mine) == dataclasses.asdict(theirs)
    assert [(f.name, f.init) for f in dataclasses.fields(mine)] == [
        (f.name, f.init) for f in dataclasses.fields(theirs)
    ]
    assert type(mine).__match_args__ == type(theirs).__match_args__
    for a, b in ((mine, PAIRS[k][0](*args, **kwargs)), (theirs, PAIRS[k][1](*args, **kwargs))):
        assert (a == b) is (k != 3) and a != 1
    assert (type(mine).__hash__ is None) is (type(theirs).__hash__ is None)
    if k in (1, 2):
        assert hash(mine) == hash(PAIRS[k][0](*args, **kwargs)) == hash(copy.copy(mine))
    assert shown(copy.deepcopy(mine)) == shown(mine)


def test_bad_calls_are_type_errors() -> None:
    for mine, theirs in PAIRS[:4]:
        for args in ((1, 2, 3, 4, 5, 6), ()) if mine in (PAIRS[0][0], PAIRS[3][0]) else ((1, 2, 3, 4),):
            with pytest.raises(TypeError):
                mine(*args)
            with pytest.raises(TypeError):
                theirs(*args)
        with pytest.raises(TypeError, match="nothing"):
            mine(1, nothing=2)


def test_defaults_are_made_for_each_instance_and_class_attributes_stay() -> None:
    plain = PAIRS[0][0]
    assert plain(1).c is not plain(1).c
    assert (plain.count, plain.b, plain.e) == (7, "x", 2.0) and not hasattr(plain, "c")


def test_frozen_instances_stay_as_they_are() -> None:
    x = PAIRS[1][0](2)
    with pytest.raises(dataclasses.FrozenInstanceError, match="'a'"):
        x.a = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        del x.a
    assert x.total == 2 and ours.replace(x, b=(3,)).total == 5 == dataclasses.replace(x, b=(3,)).total


def test_slots_leave_no_dict() -> None:
    slots = PAIRS[3][0]
    assert slots.__slots__ == ("a", "b") and not hasattr(slots(1), "__dict__")
    assert slots(1) != slots(1) and len({slots(1), slots(1)}) == 2


def test_instances_are_pickled() -> None:
    from tracegrad.backends.machine import AVX2, MachineModel

    again = pickle.loads(pickle.dumps(AVX2))
    assert again == AVX2 and isinstance(again, MachineModel) and again.lanes(4) == 8
