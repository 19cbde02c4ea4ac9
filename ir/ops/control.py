"""Control flow: `cond`, `while` and `scan`, ops whose meaning is in their regions.

A region is a graph that uses nothing of the graph around it; what it reads comes in as operands.
Gradients are in ir/grad_control.py, the rewrites in ir/pass_control*.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..batch_control import cond_batch, scan_batch, while_batch
from ..builder import Builder
from ..errors import OpError
from ..forward_control import cond_jvp, scan_jvp, while_jvp
from ..grad_control import cond_grad, scan_grad, while_grad
from ..graph import Graph, Value
from ..op import Op, Sample, register
from ..types import Type
from .records import BOOL, boolean, f32, i64

Regions = tuple[Graph, ...]


def listed(types: Iterable[Type]) -> str:
    return f"({', '.join(map(str, types))})"


def _types(values: Iterable[Value]) -> tuple[Type, ...]:
    return tuple(v.type for v in values)


def _check_regions(regions: Regions, names: Sequence[str]) -> None:
    if len(regions) != len(names):
        raise OpError(f"expected {len(names)} regions ({', '.join(names)}), got {len(regions)}")
    for name, region in zip(names, regions):
        if region.updates:
            raise OpError(f"the region {name} updates an input; a region carries what it changes")


def _check_takes(name: str, region: Graph, types: Sequence[Type]) -> None:
    got = _types(region.inputs)
    if got != tuple(types):
        raise OpError(f"the region {name} takes {listed(got)}, and is given {listed(types)}")


def _cond(pred: Type, *operands: Type, regions: Regions = ()) -> tuple[Type, ...]:
    if pred.dtype is not BOOL or pred.shape:
        raise OpError(f"expected a predicate of type bool[], got {pred}")
    _check_regions(regions, ("then", "else"))
    for name, region in zip(("then", "else"), regions):
        _check_takes(name, region, operands)
    then, other = (_types(r.outputs) for r in regions)
    if then != other:
        raise OpError(f"the region then gives {listed(then)}, else gives {listed(other)}")
    if not then:
        raise OpError("the regions give nothing")
    return then


def _cond_numpy(pred: np.ndarray, *operands: np.ndarray, regions: Regions, run: Any) -> tuple[Any, ...]:
    return tuple(run(regions[0] if pred else regions[1], operands))


def _while(
    *operands: Type, carry: int, max_trips: int | None = None, regions: Regions = ()
) -> tuple[Type, ...]:
    if not 1 <= carry <= len(operands):
        raise OpError(f"carry={carry} of {len(operands)} operands; at least one is carried")
    if max_trips is not None and max_trips < 0:
        raise OpError(f"max_trips must be >= 0 or None, got {max_trips}")
    _check_regions(regions, ("test", "body"))
    for name, region in zip(("test", "body"), regions):
        _check_takes(name, region, operands)
    if _types(regions[0].outputs) != (Type(BOOL, ()),):
        raise OpError(f"the region test gives {listed(_types(regions[0].outputs))}, expected (bool[])")
    carried = operands[:carry]
    if _types(regions[1].outputs) != carried:
        raise OpError(
            f"the region body gives {listed(_types(regions[1].outputs))}, the carried values are "
            f"{listed(carried)}"
        )
    return carried


def _while_numpy(
    *operands: np.ndarray, carry: int, max_trips: int | None = None, regions: Regions, run: Any
) -> tuple[Any, ...]:
    test, body = regions
    carried, consts = list(operands[:carry]), operands[carry:]
    trips = 0
    while (max_trips is None or trips < max_trips) and run(test, [*carried, *consts])[0]:
        carried = run(body, [*carried, *consts])
        trips += 1
    return tuple(carried)


def _scan(
    *operands: Type, length: int, carry: int = 0, xs: int = 0, reverse: bool = False, regions: Regions = ()
) -> tuple[Type, ...]:
    if length < 0:
        raise OpError(f"length must be >= 0, got {length}")
    if carry < 0 or xs < 0 or carry + xs > len(operands):
        raise OpError(f"carry={carry} and xs={xs} of {len(operands)} operands")
    for k, t in enumerate(operands[carry : carry + xs], carry):
        if not t.rank or t.shape[0] != length:
            raise OpError(f"expected operand {k} to have a leading dimension of length={length}, got {t}")
    _check_regions(regions, ("body",))
    (body,) = regions
    carried = operands[:carry]
    slices = tuple(t.with_shape(t.shape[1:]) for t in operands[carry : carry + xs])
    _check_takes("body", body, (*carried, *slices, *operands[carry + xs :]))
    outs = _types(body.outputs)
    if outs[:carry] != carried:
        raise OpError(f"the region body gives {listed(outs)}, the carried values are {listed(carried)}")
    if not outs:
        raise OpError("the region gives nothing")
    return (*carried, *(t.with_shape((length, *t.shape)) for t in outs[carry:]))


def _scan_numpy(
    *operands: np.ndarray,
    length: int,
    carry: int = 0,
    xs: int = 0,
    reverse: bool = False,
    regions: Regions,
    run: Any,
) -> tuple[Any, ...]:
    (body,) = regions
    carried = list(operands[:carry])
    stacks, consts = operands[carry : carry + xs], operands[carry + xs :]
    rows: list[list[np.ndarray]] = [[] for _ in body.outputs[carry:]]
    for i in range(length - 1, -1, -1) if reverse else range(length):
        made = run(body, [*carried, *(s[i] for s in stacks), *consts])
        carried = made[:carry]
        for row, y in zip(rows, made[carry:]):
            row.append(y)
    if reverse:
        for row in rows:
            row.reverse()
    return (*carried, *(run.stacked(row, v.type) for row, v in zip(rows, body.outputs[carry:])))


# --- samples ------------------------------------------------------------------------------------------------


def region(types: Iterable[Type], fn: Any, name: str = "region") -> Graph:
    """A graph of `fn(b, *inputs) -> outputs`."""
    graph = Graph(name)
    out = fn(Builder(graph), *[graph.add_input(t) for t in types])
    graph.outputs = list(out) if isinstance(out, tuple) else [out]
    return graph


def _branches(then: Any, other: Any) -> Any:
    return lambda types: (region(types[1:], then, "then"), region(types[1:], other, "else"))


def _loop(test: Any, body: Any) -> Any:
    return lambda types: (region(types, test, "test"), region(types, body, "body"))


def _step(carry: int, xs: int, body: Any) -> Any:
    def regions(types: tuple[Type, ...]) -> Regions:
        slices = (t.with_shape(t.shape[1:]) for t in types[carry : carry + xs])
        return (region((*types[:carry], *slices, *types[carry + xs :]), body, "body"),)

    return regions


def _rnn(b: Any, h: Any, x: Any, w: Any, u: Any) -> Any:
    h = b.tanh(b.add(b.matmul(h, w), b.matmul(x, u)))
    return h, b.sum(h, axes=(1,))


def _cond_samples() -> list[Sample]:
    two = _branches(
        lambda b, x, y: (b.mul(x, b.exp(y)), b.sum(y, axes=(0,))),
        lambda b, x, y: (b.mul(b.sin(x), y), b.sum(b.mul(x, y), axes=(0,))),
    )
    same = _branches(lambda b, i: b.add(i, i), lambda b, i: b.neg(i))
    return [
        Sample((boolean(), f32(3, 2), f32(3, 2)), regions=two),
        Sample((boolean(), i64(4)), domain=(-5, 9), smooth=False, regions=same),
    ]


def _start_at_zero(rng: Any, types: tuple[Type, ...]) -> list[np.ndarray]:
    return [
        np.asarray(np.zeros(t.shape) if t.dtype.kind == "i" else rng.uniform(-1, 1, t.shape)).astype(
            t.dtype.numpy
        )
        for t in types
    ]


def _while_samples() -> list[Sample]:
    def counted(limit: int) -> Any:
        return _loop(
            lambda b, i, x, y: b.lt(i, b.const(limit, i)),
            lambda b, i, x, y: (b.add(i, b.const(1, i)), b.add(b.sin(x), b.mul(x, y))),
        )

    operands = (i64(), f32(3), f32(3))
    return [
        Sample(operands, {"carry": 2, "max_trips": 5}, make=_start_at_zero, regions=counted(3)),
        Sample(operands, {"carry": 2, "max_trips": 2}, make=_start_at_zero, regions=counted(3)),
        Sample(operands, {"carry": 2}, make=_start_at_zero, smooth=False, regions=counted(4)),
    ]


def _scan_samples() -> list[Sample]:
    rnn = _step(1, 1, _rnn)
    types = (f32(2, 3), f32(4, 2, 2), f32(3, 3), f32(2, 3))
    total = _step(1, 1, lambda b, c, x: (b.add(c, x), b.mul(c, x)))
    power = _step(2, 0, lambda b, c, i, k: (b.mul(c, k), b.add(i, b.const(1, i)), i))
    return [
        Sample(types, {"length": 4, "carry": 1, "xs": 1}, domain=(-1.0, 1.0), regions=rnn),
        Sample((f32(3), f32(5, 3)), {"length": 5, "carry": 1, "xs": 1, "reverse": True}, regions=total),
        Sample((f32(3), i64(), f32()), {"length": 3, "carry": 2}, make=_start_at_zero, regions=power),
        Sample(
            (f32(4, 2),),
            {"length": 4, "xs": 1},
            regions=_step(0, 1, lambda b, x: (b.exp(x), b.sum(x, axes=(0,)))),
        ),
        Sample((f32(2), f32(0, 2)), {"length": 0, "carry": 1, "xs": 1}, regions=total),
        Sample((f32(2), f32(1, 2)), {"length": 1, "carry": 1, "xs": 1}, regions=total),
    ]


#: What a scan is called that came of something else: its region's name says so.
_SCAN_NAMES = {"while": "WhileLoopAutogradOpBackward", "map": "MapAutogradOpBackward"}

# --- the records --------------------------------------------------------------------------------------------

register(
    Op(
        "cond",
        _cond,
        kernel="control",
        numpy=_cond_numpy,
        grad=cond_grad,
        jvp=cond_jvp,
        batch=cond_batch,
        grad_name="CondAutogradOpBackward",
        samples=_cond_samples,
        doc="The first region's outputs on the operands where the predicate holds, else the second's; only "
        "one of them runs.",
    )
)

register(
    Op(
        "while",
        _while,
        kernel="control",
        numpy=_while_numpy,
        grad=while_grad,
        jvp=while_jvp,
        batch=while_batch,
        grad_name="WhileLoopAutogradOpBackward",
        samples=_while_samples,
        doc="Runs the second region on the carried values for as long as the first holds, at most "
        "`max_trips` times.",
    )
)

register(
    Op(
        "scan",
        _scan,
        kernel="control",
        numpy=_scan_numpy,
        grad=scan_grad,
        jvp=scan_jvp,
        batch=scan_batch,
        grad_name=lambda node: _SCAN_NAMES.get(node.regions[0].name, "ScanAutogradOpBackward"),
        samples=_scan_samples,
        doc="Runs the region once per step with the carried values, a slice of each of the xs, and the other "
        "operands; gives the last carried values and what each step gave beside them, stacked.",
    )
)
