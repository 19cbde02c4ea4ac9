"""Look-ups of embeddings in `nn.functional`. Import them from there.

Gradients are dense whatever `sparse` says: there are no sparse tensors here, and a compiled step adds the few
rows straight into the update. Indices out of range raise where they are known when recorded; native code
clamps them.
"""

from __future__ import annotations

from typing import Any

from ..ir.op import REGISTRY
from ..tracer.functions.indexing import checked_indices
from ..tracer.grad_mode import no_grad
from ..tracer.library import ArgumentError
from ..tracer.operands import tensor_operand
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor, ready

T = Any


def _rows(name: str, weight: T, padding_idx: int | None) -> int | None:
    """The padding row, counted from the start."""
    if tensor_operand(weight, f"{name}(): weight").dim() != 2:
        raise ArgumentError(f"{name}(): expected a weight [count, size], got {weight._value().type}")
    if padding_idx is None:
        return None
    count = weight.shape[0]
    if not -count <= padding_idx < count:
        raise ArgumentError(f"{name}(): padding_idx must be in [{-count}, {count}), got {padding_idx}")
    return padding_idx % count


def _checked(name: str, input: T, weight: T) -> Any:
    """Indices as a value."""
    if tensor_operand(input, f"{name}(): input").dtype.name not in ("i64", "i32"):
        raise ArgumentError(f"{name}(): indices must be int64 or int32, got {input._value().type}")
    return checked_indices(STATE.trace, input, weight.shape[0], 0, name)


def _limit_norms(weight: T, index: T, max_norm: float, p: float) -> None:
    """Scales rows of `weight` that are looked up in place so that their p-norm is at most `max_norm`."""
    with no_grad():
        i = index.reshape(-1)
        rows = weight.detach().index_select(0, i)
        norms = rows.norm(p, 1, True)
        rows = (rows * (max_norm / (norms + 1e-7))).where(norms > max_norm, rows)
        weight.index_put_((i,), rows)


def embedding(
    input: T, weight: T, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """Rows of `weight`.

    Args:
        input: integers `[...]`.
        weight: `[count, size]`; the result is `[..., size]`.
        padding_idx: a row that gets no gradient.
        max_norm: rows that are looked up are first scaled, in place, to at most this `norm_type`-norm.
        scale_grad_by_freq: gradients of a row are divided by how often it is looked up.
        sparse: no difference; gradients are dense.
    """
    padding_idx = _rows("embedding", weight, padding_idx)
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, weight)
    attrs: dict[str, Any] = {} if padding_idx is None else {"padding_idx": padding_idx}
    if scale_grad_by_freq:
        attrs["by_freq"] = True
    i = _checked("embedding", input, weight)
    if max_norm is not None:
        _limit_norms(weight, input, max_norm, norm_type)
    return Tensor(trace.emit(REGISTRY["embedding"], (weight._value(), i), attrs))


def _check_offsets(offsets: T, n: int) -> None:
    """Offsets whose values are known: the first is 0, none is beyond the input."""
    known = offsets._value().known
    if known is None or not known.type.numel or STATE.trace is not STATE.lazy:
        return
    first, last = int(known.array[0]), int(known.array[-1])
    if first != 0 or last > n:
        raise ArgumentError(
            f"embedding_bag(): offsets must start at 0 and end at most at the input's length {n}, got "
            f"offsets from {first} to {last}"
        )


def embedding_bag(
    input: T, weight: T, offsets: T = None, max_norm: float | None = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False, per_sample_weights: T = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    """The sum, mean or maximum of the rows of each bag; 0 for empty ones.

    Args:
        input: integers `[bags, length]`, or `[n]` with `offsets`.
        weight: `[count, size]`; the result is `[bags, size]`.
        offsets: `[bags]`, where in `input` each bag starts. Their values may change between calls of a
        compiled
            function.
        max_norm, norm_type, scale_grad_by_freq, sparse: as in `embedding`.
        mode: `sum`, `mean` or `max`.
        per_sample_weights: of `input`'s shape; for mode `sum`, the factor of each row.
        include_last_offset: `offsets` has one more entry, the end of the last bag.
        padding_idx: a row that counts for nothing.
    """
    padding_idx = _rows("embedding_bag", weight, padding_idx)
    if mode not in ("sum", "mean", "max"):
        raise ArgumentError(f"embedding_bag(): mode must be 'sum', 'mean' or 'max', got {mode!r}")
    if per_sample_weights is not None and mode != "sum":
        raise ArgumentError(f"embedding_bag(): per_sample_weights are for mode 'sum' only, got mode {mode!r}")
    if per_sample_weights is not None and tuple(per_sample_weights.shape) != tuple(input.shape):
        raise ArgumentError(
            f"embedding_bag(): per_sample_weights must have the input's shape {list(input.shape)}, got "
            f"{per_sample_weights._value().type}"
        )
    if scale_grad_by_freq and mode == "max":
        raise ArgumentError("embedding_bag(): scale_grad_by_freq does not go with mode 'max'")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, weight, per_sample_weights)
    i = _checked("embedding_bag", input, weight)
    operands = [weight._value(), i]
    if input.dim() == 2:
        if offsets is not None:
            raise ArgumentError(
                "embedding_bag(): an input of 2 dimensions has its bags as rows; leave out offsets"
            )
    elif input.dim() != 1 or offsets is None or offsets.dim() != 1:
        got = "None" if offsets is None else offsets._value().type
        raise ArgumentError(
            f"embedding_bag(): expected an input [bags, length], or [n] with offsets [bags], got "
            f"{input._value().type} and {got}"
        )
    else:
        _check_offsets(offsets, input.shape[0])
        operands.append(offsets._value())
    if max_norm is not None:
        _limit_norms(weight, input, max_norm, norm_type)
        operands[0] = weight._value()
    if per_sample_weights is not None:
        operands.append(per_sample_weights._value())
    attrs: dict[str, Any] = {"mode": mode}
    if include_last_offset and input.dim() == 1:
        attrs["last"] = True
    if padding_idx is not None:
        attrs["padding_idx"] = padding_idx
    if scale_grad_by_freq:
        attrs["by_freq"] = True
    return Tensor(trace.emit(REGISTRY["embedding_bag"], tuple(operands), attrs))
