"""Tracegrad against PyTorch's own operator database (`op_db`): what is in scope, how a sample is carried
over, and how one operator is compared. tests/test_opdb_peer.py asserts the rate; run this file to see what
fails:

    python tests/opdb.py [--compiled] [--samples N] [NAME ...]

Names are matched as prefixes of the database's (`sort`, `nn.functional.pad`).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tracegrad
from opdb_samples import Untranslatable, carried, full_name, function_of, in_scope, named, ours
from tracegrad.ir.errors import TraceError, TracegradError

#: Masks and noise that come from a generator of our own: only types and shapes are compared.
OWN_RANDOMNESS = {
    *("nn.functional.dropout", "nn.functional.dropout2d", "nn.functional.dropout3d"),
    *("nn.functional.alpha_dropout", "nn.functional.feature_alpha_dropout", "nn.functional.rrelu"),
}
#: Draw from the generator: a compiled function does at each call, so there is no one result.
RANDOM = {
    *("normal", "randn", "randn_like", "rand_like", "randint", "randint_like", "multinomial", "bernoulli"),
    *OWN_RANDOMNESS,
}
#: Give positions too, which are nobody's to say where elements are equal.
TIES = {"topk", "sort", "argsort", "median", "nanmedian", "kthvalue", "mode"}
UNDEFINED = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}

#: Relative and absolute tolerance by dtype; integers and bools are equal.
TOLERANCE = {torch.float32: (2e-5, 2e-5), torch.float64: (1e-7, 1e-7)}


@dataclass
class Outcome:
    """What became of one operator: `reason` is empty where everything agreed."""

    name: str
    reason: str
    samples: int
    seconds: float

    @property
    def agrees(self) -> bool:
        return not self.reason and self.samples > 0


class Difference(AssertionError):
    """Ours and PyTorch's results differ."""


# --- comparing
# ------------------------------------------------------------------------------------------------


def leaves(x: Any) -> Iterator[Any]:
    """Results, one by one."""
    if isinstance(x, (list, tuple)) and not isinstance(x, (torch.Size, tracegrad.Size)):
        for v in x:
            yield from leaves(v)
    else:
        yield x


def contents(t: Any) -> np.ndarray:
    if isinstance(t, torch.Tensor):
        return t.detach().float().numpy() if t.dtype is torch.bfloat16 else t.detach().numpy(force=True)
    return np.asarray(t.detach().float().numpy() if t.dtype is tracegrad.bfloat16 else t.detach().numpy())


def dropped_out(op: Any, sample: Any) -> bool:
    """Whether a sample of an attention drops weights at random."""
    if op.name == "nn.functional.multi_head_attention_forward":
        return sample.args[9] > 0 and sample.kwargs.get("training", True)
    return sample.kwargs.get("dropout_p", 0.0) > 0


def positions_of_equals(op: Any, sample: Any) -> bool:
    """Whether positions in the results are PyTorch's to choose among equal elements."""
    return op.name in TIES and isinstance(sample.input, torch.Tensor) and not sample.input.is_floating_point()


def compare(got: Any, want: Any, what: str, values: bool | None = True) -> None:
    """Raises Difference where results differ in number, type, shape or value; `values` is None where only the
    first of several results has values to compare."""
    mine, theirs = list(leaves(got)), list(leaves(want))
    if len(mine) != len(theirs):
        raise Difference(f"{what}: {len(mine)} results, PyTorch has {len(theirs)}")
    for k, (g, w) in enumerate(zip(mine, theirs)):
        where = what if len(mine) == 1 else f"{what} (result {k})"
        if not isinstance(w, torch.Tensor):
            if isinstance(g, tracegrad.Tensor) or (g != w and not (g != g and w != w)):
                raise Difference(f"{where}: {g!r:.60}, PyTorch has {w!r:.60}")
            continue
        if not isinstance(g, tracegrad.Tensor):
            raise Difference(f"{where}: {type(g).__name__}, PyTorch has a tensor")
        if str(g.dtype).removeprefix("tracegrad.") != str(w.dtype).removeprefix("torch."):
            raise Difference(f"{where}: {g.dtype}, PyTorch has {w.dtype}")
        if tuple(g.shape) != tuple(w.shape):
            raise Difference(f"{where}: shape {list(g.shape)}, PyTorch has {list(w.shape)}")
        if values is True or (values is None and k == 0 and len(mine) > 1):
            compare_values(contents(g), contents(w), where, TOLERANCE.get(w.dtype, (2e-2, 2e-2)))


def compare_values(g: np.ndarray, w: np.ndarray, where: str, tolerance: tuple[float, float]) -> None:
    if w.dtype.kind != "f":
        same = g == w
    else:
        rtol, atol = tolerance
        scale = np.abs(w[np.isfinite(w)]).max(initial=0.0)
        same = np.isclose(g, w, rtol, max(atol, atol * min(scale, 1e3)), equal_nan=True)
    if not np.all(same):
        at = tuple(int(i) for i in np.argwhere(~np.asarray(same))[0]) if g.ndim else ()
        raise Difference(f"{where}: {g[at]} at {list(at)}, PyTorch has {w[at]}")


def short(e: BaseException) -> str:
    first = str(e).splitlines()[0] if str(e) else ""
    return first if isinstance(e, Difference) else f"{type(e).__name__}: {first}"


def signature(sample: Any) -> str:
    """A sample's operands in short, for messages."""

    def show(x: Any) -> str:
        if isinstance(x, torch.Tensor):
            return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        if isinstance(x, (list, tuple)):
            return "(" + ", ".join(show(v) for v in x) + ")"
        return repr(x)

    parts = [show(x) for x in (sample.input, *sample.args)]
    parts += [f"{k}={show(v)}" for k, v in sample.kwargs.items()]
    return f"({', '.join(parts):.160})"


# --- one operator
# -----------------------------------------------------------------------------------------------


def picked(op: Any, dtype: torch.dtype, count: int, grad: bool = False) -> list[Any]:
    """A few of an operator's samples, spread over the first hundred."""
    if dtype not in op.supported_dtypes("cpu"):
        return []
    torch.manual_seed(0)
    made = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=grad), 100))
    if len(made) <= count:
        return made
    step = (len(made) - 1) / (count - 1) if count > 1 else 1
    return [made[round(k * step)] for k in range(count)]


def seeded() -> None:
    torch.manual_seed(7)
    tracegrad.manual_seed(7)


def attempt(f: Callable[..., Any]) -> tuple[Any, BaseException | None]:
    try:
        return f(), None
    except Exception as e:
        return None, e


class Sweep:
    """Compares operators: up to `count` samples of each dtype, and with `compiled` the first one natively
    too."""

    def __init__(self, count: int = 5, compiled: bool = False, verbose: bool = False) -> None:
        self.count = count
        self.compiled = compiled
        self.verbose = verbose

    def run(self, op: Any) -> Outcome:
        begin, self.done = time.perf_counter(), 0
        try:
            self._check(op)
            reason = "" if self.done else "no sample could be carried over"
        except Exception as e:
            reason = short(e)
            if self.verbose and not isinstance(e, Difference):
                traceback.print_exc()
        return Outcome(full_name(op), reason, self.done, time.perf_counter() - begin)

    def _check(self, op: Any) -> None:
        f = function_of(op)
        if f is None:
            raise Difference("there is no such function")
        self.native = self.compiled and op.name not in RANDOM | UNDEFINED
        for dtype, count in ((torch.float32, self.count), (torch.int64, 2), (torch.bool, 2)):
            for sample in picked(op, dtype, count):
                self._guarded(sample, lambda s=sample: self._values(op, f, s))
        self.native = self.compiled and op.name not in RANDOM | UNDEFINED
        if op.supports_autograd and torch.float64 in op.supported_dtypes("cpu"):
            for sample in picked(op, torch.float64, min(self.count, 4), grad=True):
                self._guarded(sample, lambda s=sample: self._gradients(op, f, s))

    def _guarded(self, sample: Any, check: Callable[[], None]) -> None:
        try:
            check()
            self.done += 1
        except Untranslatable:
            pass
        except Exception as e:
            if self.verbose and not isinstance(e, (Difference, TracegradError)):
                traceback.print_exc()
            raise Difference(f"{short(e)} for {signature(sample)}") from e

    def _values(self, op: Any, f: Any, sample: Any) -> None:
        defined: bool | None = op.name not in OWN_RANDOMNESS | UNDEFINED
        if dropped_out(op, sample):
            defined = False
        elif positions_of_equals(op, sample):
            defined = None
        seeded()
        want, wrong = attempt(lambda: op.op(sample.input, *sample.args, **sample.kwargs))
        if wrong is not None or any(isinstance(w, torch.Tensor) and w.is_complex() for w in leaves(want)):
            raise Untranslatable(str(wrong))
        x, args, kwargs = carried(sample)
        compare(f(x, *args, **kwargs), want, "value", defined)
        if self.native and isinstance(x, tracegrad.Tensor):
            self.native = False  # one sample is enough
            native = tracegrad.compile(lambda x: f(x, *args, **kwargs))
            got, wrong = attempt(lambda: native(x))
            if wrong is None:
                compare(got, want, "compiled value", defined)
            elif not needs_values(wrong):
                raise wrong
        if isinstance(sample.input, torch.Tensor):
            self._method(op, sample, want, defined)
            self._inplace(op, sample, defined)

    def _method(self, op: Any, sample: Any, want: Any, defined: bool | None) -> None:
        theirs = op.method_variant
        if theirs is None or not hasattr(torch.Tensor, theirs.__name__):
            return
        mine = getattr(tracegrad.Tensor, theirs.__name__, None)
        if mine is None:
            raise Difference(f"there is no method {theirs.__name__}()")
        x, args, kwargs = carried(sample)
        seeded()
        compare(mine(x, *args, **kwargs), want, f"method {theirs.__name__}()", defined)

    def _inplace(self, op: Any, sample: Any, defined: bool | None) -> None:
        theirs = op.inplace_variant
        if theirs is None or sample.broadcasts_input or not sample.input.is_contiguous():
            return
        name = getattr(theirs, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            mine = getattr(tracegrad.Tensor, name, None) or named(name)
        else:  # `lambda x: F.relu(x, inplace=True)`
            name, mine = "variant", ours(theirs)
        base = sample.input.clone()
        seeded()
        want, wrong = attempt(lambda: theirs(base, *sample.args, **sample.kwargs))
        if wrong is not None:
            return
        if mine is None:
            raise Difference(f"there is no in-place {name}()")
        x, args, kwargs = carried(sample)
        seeded()
        out = mine(x, *args, **kwargs)
        compare(out, want, f"in-place {name}()", defined)
        compare(x, base, f"operand of in-place {name}()", defined)

    def _gradients(self, op: Any, f: Any, sample: Any) -> None:
        if op.name in OWN_RANDOMNESS or dropped_out(op, sample):
            raise Untranslatable("random")
        seeded()
        made = op.op(sample.input, *sample.args, **sample.kwargs)
        made = sample.output_process_fn_grad(made)
        want = [w for w in leaves(made) if isinstance(w, torch.Tensor) and w.requires_grad]
        if not want or any(w.is_complex() for w in want):
            raise Untranslatable("no gradient")
        wrt = [
            t for t in leaves((sample.input, sample.args, list(sample.kwargs.values()))) if differentiated(t)
        ]
        weights = [weight(tuple(w.shape)) for w in want]
        total: Any = sum((w * torch.from_numpy(k)).sum() for w, k in zip(want, weights))
        theirs = torch.autograd.grad(total, wrt, allow_unused=True)

        def mine(x: Any, args: Any, kwargs: Any, inputs: list[Any]) -> list[Any]:
            out = ours(sample.output_process_fn_grad)(f(x, *args, **kwargs))
            got = [g for g in leaves(out) if isinstance(g, tracegrad.Tensor) and g.requires_grad]
            if len(got) != len(want):
                raise Difference(f"{len(got)} results require grad, in PyTorch {len(want)}")
            loss = sum((g * tracegrad.tensor(k)).sum() for g, k in zip(got, weights))
            return [loss, *tracegrad.autograd.grad(loss, inputs, allow_unused=True)]

        x, args, kwargs = carried(sample)
        inputs = [t for t in leaves((x, args, list(kwargs.values()))) if differentiated(t)]
        seeded()
        found = [mine(x, args, kwargs, inputs)]
        if self.native:
            self.native = False
            got, wrong = attempt(tracegrad.compile(lambda: mine(x, args, kwargs, inputs)))
            if wrong is None:
                found.append(got)
            elif not needs_values(wrong):
                raise wrong
        for got, how in zip(found, ("", "compiled ")):
            compare(got[0], total, f"{how}weighted sum")
            for k, (g, w) in enumerate(zip(got[1:], theirs)):
                if (g is None) != (w is None) and bool(np.any(contents(w if g is None else g))):
                    raise Difference(
                        f"{how}gradient {k} is {'missing' if g is None else 'there'}, not so in PyTorch"
                    )
                if g is not None and w is not None:
                    compare(g, w, f"{how}gradient {k}")


def needs_values(e: BaseException) -> bool:
    """Whether a function can't be compiled because its result's shape depends on values, as it says."""
    return isinstance(e, TraceError) and any(
        text in str(e) for text in ("only known when the program runs", "decided by the values")
    )


def differentiated(t: Any) -> bool:
    return isinstance(t, (torch.Tensor, tracegrad.Tensor)) and t.requires_grad


def weight(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.5, 1.5, shape)


def accepted_errors(op: Any) -> tuple[int, list[str]]:
    """How many of an operator's bad inputs there are, and those that we take without an error, or fail at
    with one that is not ours."""
    f, wrong, count = function_of(op), [], 0
    if f is None or op.error_inputs_func is None:
        return 0, []
    for bad in op.error_inputs("cpu"):
        sample = bad.sample_input
        try:
            x, args, kwargs = carried(sample)
        except Exception:
            continue
        _, theirs = attempt(lambda s=sample: op.op(s.input, *s.args, **s.kwargs))
        if theirs is None:
            continue
        count += 1
        _, e = attempt(
            lambda x=x, args=args, kwargs=kwargs: [contents(t) for t in leaves(f(x, *args, **kwargs))]
        )
        if e is None:
            wrong.append(f"taken: {signature(sample)}, PyTorch: {short(theirs)[:120]}")
        elif not isinstance(e, (TracegradError, TypeError)):
            wrong.append(f"{short(e)[:80]} for {signature(sample)}, PyTorch: {short(theirs)[:80]}")
    return count, wrong


def sweep(ops: list[Any], **options: Any) -> list[Outcome]:
    """Outcomes of all operators, in order."""
    torch.set_num_threads(1)
    with np.errstate(all="ignore"):
        runner = Sweep(**options)
        return [runner.run(op) for op in ops]


def table(outcomes: list[Outcome]) -> str:
    """What fails and why, and the rate."""
    wrong = [o for o in outcomes if not o.agrees]
    lines = [f"{o.name:<44} {o.reason}" for o in wrong]
    agree = len(outcomes) - len(wrong)
    rate = 100 * agree / max(len(outcomes), 1)
    samples = sum(o.samples for o in outcomes)
    return "\n".join(
        [*lines, f"{agree} of {len(outcomes)} operators agree ({rate:.1f} %), {samples} samples"]
    )


def main() -> None:
    import json
    import warnings
    from pathlib import Path

    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--errors", action="store_true", help="bad inputs that are taken instead")
    parser.add_argument("--slow", type=int, default=0, help="show the N slowest")
    given = parser.parse_args()
    ops = in_scope(set(json.loads((Path(__file__).parent / "opdb_names.json").read_text())))
    if given.names:
        ops = [o for o in ops if any(full_name(o).startswith(n) for n in given.names)]
    if given.errors:
        total = 0
        for op in ops:
            count, wrong = accepted_errors(op)
            total += count
            for line in wrong:
                print(f"{full_name(op):<30} {line}")
        print(f"{total} bad inputs")
        return
    begin = time.perf_counter()
    outcomes = sweep(ops, count=given.samples, compiled=given.compiled, verbose=given.verbose)
    print(table(outcomes))
    for o in sorted(outcomes, key=lambda o: -o.seconds)[: given.slow]:
        print(f"{o.seconds:6.2f} s  {o.name}")
    print(f"{time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
