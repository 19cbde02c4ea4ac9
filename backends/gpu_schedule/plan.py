"""The planner for GPUs: the CPU's, but for contractions, of which every result may have an epilogue and no
operand is packed, and for values of a few elements that take long. Used by gpu_schedule/__init__.py."""

from __future__ import annotations

from ...ir.expr import Const, Expr, Load, Var
from ...ir.graph import Graph, Node, Value
from ..machine import GpuModel, MachineModel
from ..schedule.contract import ContractGroup, Dim, affine_source, joined
from ..schedule.control import Frame
from ..schedule.indexing import ZERO, ravel, unravel
from ..schedule.other_groups import TinyGroup
from ..schedule.plan import Planner


class GpuContractGroup(ContractGroup):
    """A contraction and its epilogue; `rows` and `cols` are flat, whatever their strides, and neighbouring
    columns are neighbours in the result if any are."""

    def arrange(
        self,
        spec_a: str,
        spec_b: str,
        out: str,
        sizes: dict[str, int],
        strides: dict[str, tuple[int, int, int]],
    ) -> None:
        """Groups letters into dimensions."""

        def dims(letters: list[str]) -> list[Dim]:
            runs = joined(letters, sizes, strides)
            for d in runs:
                d.var = Var(d.letters[0], d.size) if d.size != 1 else ZERO
            return runs

        one = [Dim("", 1, ZERO, 0, 0, 0)]
        self.batch = dims([c for c in out if c in spec_a and c in spec_b])
        self.rows = dims([c for c in out if c not in spec_b]) or one
        self.cols = dims([c for c in out if c not in spec_a]) or one
        inner = [c for c in spec_a if c not in out]
        self.inner = dims(sorted(inner, key=lambda c: -abs(strides[c][0]))) or one
        if self.rows[-1].c == 1 and self.cols[-1].c != 1:
            self.rows, self.cols = self.cols, self.rows
            for d in {id(d): d for d in (*self.batch, *self.rows, *self.cols, *self.inner)}.values():
                d.a, d.b = d.b, d.a
            for pair in (self.offsets, self.buffers, self.masks):
                pair.reverse()
        self.sizes = sizes
        letters: dict[str, Expr] = {}
        for d in (*self.batch, *self.rows, *self.cols):
            letters.update(zip(d.letters, unravel(d.var, tuple(sizes[c] for c in d.letters))))
        self.index = tuple(letters.get(c, Const(0)) for c in out)
        self.flat = ravel(self.index, self.result.type.shape)
        self.by_shape[self.result.type.shape] = self.index

    @property
    def scattered(self) -> bool:
        return False

    def takes(self, e: Load) -> bool:
        """Zeros around a window are not stored: what is fetched is masked anyway."""
        return e.mask is None or (isinstance(e.other, Const) and e.other.value == 0)


#: cycles that one of several elements may take of the one thread that computes them all
QUICK = 100.0


class GpuTinyGroup(TinyGroup):
    """Values of a few elements by one thread; what takes long (powers of integers, say) is left to others, a
    thread for each element."""

    def try_join(self, v: Value) -> bool:
        if v.type.numel > 1 and self.plan.inline_cost(v) > QUICK:
            return False
        return super().try_join(v)


class GpuPlanner(Planner):
    """As `Planner`, for a GPU."""

    contract_group = GpuContractGroup
    tiny_group = GpuTinyGroup

    def __init__(self, graph: Graph, gpu: GpuModel, frame: Frame | None = None) -> None:
        self.gpu = gpu
        super().__init__(graph, MachineModel(l2_bytes=gpu.l2_bytes), frame)

    def inner(self, graph: Graph, frame: Frame) -> Planner:
        return GpuPlanner(graph, self.gpu, frame)

    def contract_sources(self, node: Node) -> tuple[tuple[Value, tuple[int, ...]], ...]:
        """Windows are met where they are, padded ones without their padding: tiles of them are copied to
        shared memory anyway."""
        return tuple(affine_source(o, self.home, padded=True) for o in node.operands)
