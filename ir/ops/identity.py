"""Ops that change nothing but the record: copies and the places where gradients stop. Passes dissolve
them."""

from __future__ import annotations

from ..op import Sample
from .records import composite, f32


def _identity(
    name: str, *, differentiable: bool = True, view: bool = False, grad_name: str = "", doc: str
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
        doc=doc,
    )


_identity("clone", doc="x itself, to be held in memory of its own.")
_identity("alias", view=True, doc="x itself, as a new value.")
_identity("detach", differentiable=False, view=True, doc="x itself, through which no gradient flows.")
