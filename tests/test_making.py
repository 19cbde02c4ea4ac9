"""The quick constructors of tracer/making.py and values.py set what the classes' own do: an attribute that is
added to a class and forgotten there is missing here."""

from typing import Any

import tracegrad as tg
from tracegrad.ir.dtypes import float32
from tracegrad.ir.types import Type
from tracegrad.tracer.making import of_storage
from tracegrad.tracer.recording import STATE
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.values import Pending, TracedValue, pending, storage_of

TYPE = Type(float32, (3,))


def attributes(x: Any) -> dict[str, Any]:
    """What all slots hold, and the dictionary; those that are not set are left out."""
    out = dict(getattr(x, "__dict__", {}))
    for c in type(x).__mro__:
        for name in getattr(c, "__slots__", ()):
            try:
                out[name] = c.__dict__[name].__get__(x, c)
            except AttributeError:
                continue
    return out


def test_tensors() -> None:
    value = TracedValue(TYPE)
    made, quick = attributes(Tensor(value)), attributes(of_storage(storage_of(value)))
    assert made.keys() == quick.keys() and "_storage" in made
    assert all(made[n] == quick[n] for n in made if n != "_storage")


def test_pending_values_and_recorded_tensors() -> None:
    """A tensor recorded where the last program recorded the same, against one recorded anew. The node
    of a value is made when it is asked for."""
    x, y = tg.ones(3), tg.ones(3)
    found = []
    for _ in range(3):
        z = (x + y).exp()  # inputs of a program take the long way
        found.append([set(attributes(a)) - {"node"} for a in (z, z._storage, z._storage.value)])
        z.tolist()
    assert found[0] == found[1] == found[2]
    slow, quick = Pending(TYPE, None, 0, STATE.lazy, None, False), pending(TYPE, STATE.lazy, False)
    assert set(attributes(slow)) - {"node"} == set(attributes(quick))
