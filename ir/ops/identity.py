"""Ops that change nothing but the record: copies and the places where gradients stop. Passes dissolve
them."""

from __future__ import annotations

from typing import Any

from .. import batch_rules
from ..errors import OpError
from ..op import Sample
from ..types import Type
from .records import check_same_dtype, composite, f32


def _identity(
    name: str,
    *,
    differentiable: bool = True,
    view: bool = False,
    grad_name: str = "",
    jvp: Any = None,
    doc: str,
) -> None:
    composite(
        name,
        lambda x: x,
        lambda b, x: x,
        lambda b, n, g: (g,),
        samples=lambda: [Sample((f32(3, 2),)), Sample((f32(),))],
        grad_name=grad_name,
        differentiable=differentiable,
        unview=(lambda b, base, new: new) if view else None,
        jvp=jvp,
        batch=batch_rules.same,
        doc=doc,
    )


def _rebind(old: Type, new: Type) -> Type:
    check_same_dtype(old, new)
    if old.shape != new.shape:
        raise OpError(f"expected the same shapes, got {old} and {new}")
    return new


composite(
    "rebind",
    _rebind,
    lambda b, old, new: new,
    lambda b, n, g: (g, None),
    batch=batch_rules.same,
    samples=lambda: [Sample((f32(3, 2), f32(3, 2)), smooth=False), Sample((f32(), f32()), smooth=False)],
    doc="The contents of `new` with the history of `old`: a write that autograd does not see.",
)
_identity("clone", doc="x itself, to be held in memory of its own.")
_identity("alias", view=True, doc="x itself, as a new value.")
_identity("detach", differentiable=False, view=True, doc="x itself, through which no gradient flows.")
_identity(
    "unrecorded",
    differentiable=False,
    jvp=lambda b, n, t: t,
    doc="x itself, as computed under no_grad(): gradients do not flow back through it, tangents do.",
)
