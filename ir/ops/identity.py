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


def _sampled(x: Type, parameter: Type, other: Type | None = None) -> Type:
    return x


def _no_slopes(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    """PyTorch's gradient of a draw by its distribution's parameters: zeros."""
    zeros = [b.full(shape=n.type(k).shape, value=0.0, dtype=n.type(k).dtype) for k in range(1, len(n))]
    return (None, *zeros)


for _name, _grad_name in (("sampled_normal", "NormalBackward1"), ("sampled_bernoulli", "BernoulliBackward0")):
    composite(
        _name,
        _sampled,
        lambda b, x, *parameters: x,
        _no_slopes,
        batch=batch_rules.same,
        samples=lambda: [
            Sample((f32(3, 2), f32(2)), smooth=False),
            Sample((f32(3), f32(), f32(3)), smooth=False),
        ],
        grad_name=_grad_name,
        doc="x, drawn from a distribution whose parameters the other operands are.",
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
composite(
    "backward_hook",
    lambda *types: types if len(types) != 1 else types[0],
    lambda b, *values: values if len(values) != 1 else values[0],
    lambda b, n, *grads: grads,
    batch=batch_rules.same,
    samples=lambda: [Sample((f32(3, 2),)), Sample((f32(), f32(2)))],
    grad_name="BackwardHookFunctionBackward",
    doc="The operands themselves, at a place where backward hooks of a module see their gradients.",
)
