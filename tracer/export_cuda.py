"""`tracegrad.export_cuda`: a compiled function as a CUDA program that stands alone."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import TraceError
from .compile import CompiledFunction, current_contents

_ALIGN = 8


def export_cuda(
    step: CompiledFunction,
    path: str | os.PathLike[str],
    *args: Any,
    architecture: str = "sm_80",
    **kwargs: Any,
) -> Path:
    """Writes a compiled function as one `.cu` file with a `main`, and beside it what it starts from.

        tracegrad.export_cuda(step, "train.cu", x, y)
        $ nvcc -O3 train.cu -o train && ./train 1000

    The program loads its inputs (arguments, parameters, optimiser state, hyper-parameters) from
    `train.safetensors`, which is written with their present values, runs the function as often as asked (10
    times by default), prints every output that is one float, and writes all that was updated to
    `train.results.safetensors`. Tensors have the names that the program's graph gives them. Files are written
    under another name and renamed.

    Args:
        step: a function that `tracegrad.compile` made.
        path: the file, usually `*.cu`.
        args, kwargs: arguments of one call; the same in every step.
        architecture: what kernels are scheduled for: `sm_75`, `sm_80` or `sm_90`.

    Returns the path. Raises TraceError if `step` was not compiled, or sets gradients that its next call would
    see (call it once before).
    """
    from ..backends.cuda.standalone import standalone
    from ..runtime.cuda_lowered import CudaLowered

    if not isinstance(step, CompiledFunction):
        raise TraceError(
            f"export_cuda() takes a function that tracegrad.compile made, got {type(step).__name__}"
        )
    spec, tensors = step._find(args, kwargs)
    if not spec.stable():
        raise TraceError(
            f"{step.name!r} leaves gradients that its next call would find: its steps are not alike; call it "
            f"once before export_cuda(), or reset the gradients in it"
        )
    lowered = spec.lowered.cuda
    if lowered.architecture != architecture:
        lowered = CudaLowered(spec.lowered, architecture)
    path = Path(path)
    text = standalone(lowered.unit, path.stem)
    names = lowered.unit.slots[0]
    arrays = [current_contents(p, tensors) for p in spec.traced.places]
    _write(
        path.with_suffix(".safetensors"),
        lambda f: _tensors(f, dict(zip(names, zip(arrays, lowered.loops.inputs)))),
    )
    _write(path, lambda f: f.write(text.encode()))
    return path


def _tensors(file: Any, tensors: dict[str, Any]) -> None:
    """The safetensors format: a length, a JSON header, the contents."""
    from ..backends.cuda.standalone import FILE_TYPES

    header: dict[str, Any] = {}
    at = 0
    for name, (a, b) in tensors.items():
        header[name] = {
            "dtype": FILE_TYPES[b.dtype], "shape": list(b.shape), "data_offsets": [at, at + a.nbytes],
        }  # fmt: skip
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    file.write(len(text).to_bytes(8, "little") + text)
    for a, _ in tensors.values():
        file.write(np.ascontiguousarray(a).tobytes())


def _write(path: Path, fill: Callable[[Any], Any]) -> None:
    """A whole file or none."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as f:
            fill(f)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
