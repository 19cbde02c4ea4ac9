"""Loads and stores of the code generator: how the lanes of a vector meet memory.

By what the lane number does to the address: equal addresses are one scalar access; neighbours one vector
access (or a masked one); neighbours backwards add a shuffle; short strides and known places among neighbours
are a few vector loads and shuffles (codegen_shuffles); anything else is a gather or scatter. Used by
codegen_expr (loads) and codegen (stores).
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd
from typing import Any, NamedTuple

from ...ir.dtypes import bool_, int64
from ...ir.expr import Expr
from ...ir.loops import Buffer
from .codegen_index import LANE, Linear, Split
from .codegen_shuffles import Address, ShuffleWriter
from .codegen_text import (
    Module,
    Place,
    Val,
    constant,
    hint_of,
    memory_type,
    suffix,
    type_text,
    vector_text,
)

_MAX_STRIDE = 4  # up to here, reading everything between the lanes beats a gather
_ZEROS_BYTES = 512
_ZEROS = "@tg.zeros"


class Flat(NamedTuple):
    """The element index of one access in the program.

    Attributes:
        linear: its linear form.
        bases: address without constants, its alignment, and the addresses made from it by constant; by the
            bindings of what the index is made of.
    """

    linear: Linear
    bases: dict[tuple[Any, ...], tuple[str, int, dict[int, Address]]]


class MemoryWriter(ShuffleWriter):
    """Adds memory accesses.

    Attributes: mask: condition under which the current statement holds, from branches that vary by lane;
        None: always.
    """

    mask: Val | None = None

    def __init__(self, module: Module) -> None:
        super().__init__(module)
        self._flat: dict[tuple[Buffer, int, tuple[Expr, ...]], Flat] = {}

    def place(self, buffer: Buffer) -> Place:
        """Where a buffer is."""
        return self.env[buffer]

    def flat(self, buffer: Buffer, index: tuple[Expr, ...], copies: int) -> Flat:
        """The flat element index of an access, times `copies`; remembered per access."""
        known = (buffer, copies, index)
        got = self._flat.get(known)
        if got is None:
            if len(index) == 1:
                const, atoms = self.linear(index[0])
            else:
                total: dict[Expr, int] = {}
                const, stride = 0, 1
                for e, n in zip(reversed(index), reversed(buffer.shape)):
                    c, some = self.linear(e)
                    const += c * stride
                    for a, k in some:
                        total[a] = total.get(a, 0) + k * stride
                    stride *= n
                atoms = tuple(total.items())
            m = copies
            got = Flat((const * m, tuple([(a, k * m) for a, k in atoms])), {})
            self._flat[known] = got
        return got

    def address(self, buffer: Buffer, index: tuple[Expr, ...]) -> Address:
        """Addresses of an access in the current loops. Unrolled bodies repeat them but for constants, so they
        are remembered: under the bindings of the variables in the index, whose names are new in every loop.
        """
        env = self.env
        place: Place = env[buffer]
        flat = self._flat.get((buffer, place.lanes, index)) or self.flat(buffer, index, place.lanes)
        const, atoms = flat.linear
        stride = 0
        key: list[Any] = [place.ref]
        for atom, k in atoms:
            bound: Any = env.get(atom)
            kind = type(bound)
            if kind is int:
                const += k * bound
                bound = None
            elif bound is LANE:
                stride += k
            elif kind is not str:
                return self._address(place, flat.linear)
            key.append(bound)
        if place.private is not None or place.slots is not None:
            return self._address(place, flat.linear)
        known = tuple(key)
        base = flat.bases.get(known)
        if base is None:
            terms = [(x, k) for x, (_, k) in zip(key[1:], atoms) if type(x) is str]
            base = flat.bases[known] = (*self._base(place, terms), {})
        ref, align, addresses = base
        got = addresses.get(const)
        if got is None:
            ref, align = self._displaced(place, ref, align, const)
            got = addresses[const] = Address(ref, align, stride, None)
        return got

    def _base(self, place: Place, terms: list[tuple[str, int]]) -> tuple[str, int]:
        """A buffer's address plus terms, and the alignment known of it."""
        if not terms:
            return place.ref, place.align
        size = place.dtype.itemsize
        return self._advance(place.ref, memory_type(place.dtype), terms), gcd(
            place.align, *[k * size for _, k in terms]
        )

    def _displaced(self, place: Place, ref: str, align: int, const: int) -> tuple[str, int]:
        """An address some elements on."""
        if not const:
            return ref, align
        text = f"getelementptr {memory_type(place.dtype)}, ptr {ref}, i64 {const}"
        return self.pure(text, ref, hint="p"), gcd(align, const * place.dtype.itemsize)

    def _address(self, place: Place, linear: Linear) -> Address:
        s = self.split(linear)
        stride, vectors, const = s.stride, s.vectors, s.const
        if place.private is not None:
            stride += 1
        pattern = self.pattern_of(s) if vectors and place.private is None else None
        if pattern is not None and len({b - a for a, b in pairwise(pattern)}) == 1:
            vectors, stride, const = [], pattern[1] - pattern[0], const + pattern[0]
        ref, align = self._displaced(place, *self._base(place, s.terms), const)
        if not vectors:
            if place.slots is not None and not s.terms:
                ty = vector_text(memory_type(place.dtype), self.lanes if stride else 0)
                place.slots[ref, ty] = None
            return Address(ref, align, stride, None)
        lanes = Split(0, [], stride, vectors)
        return Address(ref, place.dtype.itemsize, 0, self.vector_of(lanes, self.range_of(lanes)), pattern)

    def _advance(self, ref: str, element: str, terms: list[tuple[str, int]]) -> str:
        """A pointer plus scaled terms, one step per region, outermost first: inner loops only add what they
        change."""
        depth = self.depth
        if len(terms) == 1:
            ((t, k),) = terms
            offset = self.scale(t, k)
            return self.pure(f"getelementptr {element}, ptr {ref}, i64 {offset}", ref, offset, hint="p")
        levels: dict[int, list[tuple[str, int]]] = {}
        for t in terms:
            levels.setdefault(depth.get(t[0], 0), []).append(t)
        for d in sorted(levels):
            offset = self.sum_i64(levels[d], 0).ref
            ref = self.pure(f"getelementptr {element}, ptr {ref}, i64 {offset}", ref, offset, hint="p")
        return ref

    def both(self, a: Val | None, b: Val | None) -> Val | None:
        """The conjunction of two conditions; None is true."""
        if a is None or a.const is True:
            return None if b is None or b.const is True else b
        if b is None or b.const is True or a.const is False:
            return a
        if b.const is False:
            return b
        return self.conjunction(a, b)

    def conjunction(self, a: Val, b: Val) -> Val:
        """Both of two conditions that are not known."""
        lanes = max(a.lanes, b.lanes)
        x, y = self.use(a, lanes), self.use(b, lanes)
        ref = self.pure(f"and {vector_text('i1', lanes)} {x}, {y}", x, y)
        none: frozenset[int] = frozenset()
        self.never[ref] = self.never.get(x, none) | self.never.get(y, none)
        return Val(ref, bool_, lanes)

    # --- loads ----------------------------------------------------------------------------------------------

    def load_element(
        self, buffer: Buffer, index: tuple[Expr, ...], mask: Expr | None, other: Expr | None
    ) -> Val:
        """`buffer[index]` where `mask` holds, else `other` (default zero)."""
        condition = self.both(self.mask, None if mask is None else self.value(mask))
        dtype = buffer.dtype
        fallback = None if other is None or mask is None else self.value(other)
        if condition is not None and condition.const is False:
            return constant(0, dtype) if fallback is None else fallback
        place = self.place(buffer)
        at = self.address(buffer, index)
        hint = hint_of(buffer.name)
        lanes = self.lanes
        if at.pattern is not None and max(at.pattern) - min(at.pattern) < lanes:
            return self._spread(place, at, condition, fallback, hint)
        if at.offsets is not None:
            return self._gather(place, at.ref, self._pointers(place, at), condition, fallback, hint)
        if not lanes or at.stride == 0:
            if condition is None or not condition.lanes:
                return self._plain(place, at, 0, condition, fallback, hint)
            # One address, but only some lanes may look at it: look if any does.
            some = self.pure(
                f"call i1 @llvm.vector.reduce.or.v{lanes}i1(<{lanes} x i1> {condition.ref})", condition.ref
            )
            self.module.declares[f"declare i1 @llvm.vector.reduce.or.v{lanes}i1(<{lanes} x i1>)"] = None
            x = self._plain(place, at, 0, Val(some, bool_), None, hint)
            return x if mask is None else self.select(condition, x, fallback or constant(0, dtype))
        if abs(at.stride) == 1:
            return self._contiguous(place, at, condition, fallback, hint)
        size = place.dtype.itemsize
        short = (1 if condition is not None else -_MAX_STRIDE) <= at.stride <= _MAX_STRIDE
        if short and (condition is None or condition.lanes) and size >= 4 and lanes >= 4:
            return self._strided(place, at, condition, fallback, hint)
        return self._gather(place, at.ref, self._pointers(place, at), condition, fallback, hint)

    def _plain(
        self, place: Place, at: Address, lanes: int, condition: Val | None, other: Val | None, hint: str
    ) -> Val:
        """A scalar or whole vector load; a false scalar condition diverts it to zeros."""
        element = memory_type(place.dtype)
        ty = vector_text(element, lanes)
        ref, align = at.ref, at.align
        if condition is not None:
            self.module.zeros = True
            ref = self.pure(f"select i1 {condition.ref}, ptr {ref}, ptr {_ZEROS}", condition.ref, ref)
        text = f"load {ty}, ptr {ref}, align {align}{place.apart}"
        x = self.load(text, place.group, ref, hint=hint)
        v = self._from_memory(x, place, lanes)
        if condition is not None and other is not None and other.const != 0:
            return self.select(condition, v, other)
        return v

    def _contiguous(
        self, place: Place, at: Address, condition: Val | None, other: Val | None, hint: str
    ) -> Val:
        lanes, size = self.lanes, place.dtype.itemsize
        backwards = at.stride < 0
        if backwards:
            at = self._shifted(place, at, 1 - lanes)
            if condition is not None and condition.lanes:
                condition = Val(self._picked(condition, list(range(lanes))[::-1]), bool_, lanes)
            if other is not None and other.lanes:
                other = Val(self._reverse(other.ref, type_text(other.dtype, 0)), other.dtype, lanes)
        if condition is None or (not condition.lanes and lanes * size <= _ZEROS_BYTES):
            v = self._plain(place, at, lanes, condition, other, hint)
        else:
            v = self._masked(place, at, condition, other, hint)
        if backwards:
            return Val(self._reverse(v.ref, type_text(v.dtype, 0)), v.dtype, lanes)
        return v

    def _masked(self, place: Place, at: Address, condition: Val, other: Val | None, hint: str) -> Val:
        lanes = self.lanes
        rest = self._passthrough(other, memory_type(place.dtype))
        x = self.masked_load(place, at, lanes, self.use(condition, lanes), rest, hint)
        return self._from_memory(x, place, lanes)

    def _gather(
        self, place: Place, base: str, pointers: str, condition: Val | None, other: Val | None, hint: str
    ) -> Val:
        element, lanes = memory_type(place.dtype), self.lanes
        ty = vector_text(element, lanes)
        mask = "splat (i1 true)" if condition is None else self.use(condition, lanes)
        rest = "poison" if condition is None else self._passthrough(other, element)
        name = f"@llvm.masked.gather.{suffix(element, lanes)}.v{lanes}p0"
        self.module.declares[f"declare {ty} {name}(<{lanes} x ptr>, <{lanes} x i1>, {ty})"] = None
        x = self.load(
            f"call {ty} {name}(<{lanes} x ptr> align {place.dtype.itemsize} {pointers}, "
            f"<{lanes} x i1> {mask}, {ty} {rest}){place.apart}",
            place.group,
            pointers,
            mask,
            rest,
            hint=hint,
        )
        return self._from_memory(x, place, lanes)

    def _pointers(self, place: Place, at: Address) -> str:
        """All lanes' addresses, as a base plus offsets that x86 gathers fold."""
        element, lanes = memory_type(place.dtype), self.lanes
        if at.offsets is None:
            offsets, kind = self.iota(lanes, "i64", at.stride), "i64"
        else:
            offsets, kind = at.offsets.ref, "i64" if at.offsets.dtype is int64 else "i32"
        return self.pure(
            f"getelementptr {element}, ptr {at.ref}, <{lanes} x {kind}> {offsets}", at.ref, offsets
        )

    def _passthrough(self, other: Val | None, element: str) -> str:
        """What masked lanes give, as memory holds it."""
        if other is None:
            return "zeroinitializer"
        if other.dtype is bool_:
            if other.const is not None:
                return "splat (i8 1)" if other.const else "zeroinitializer"
            x = self.use(other, self.lanes)
            return self.pure(f"zext <{self.lanes} x i1> {x} to <{self.lanes} x i8>", x)
        return self.use(other, self.lanes)

    # --- stores ---------------------------------------------------------------------------------------------

    def store_element(
        self, buffer: Buffer, index: tuple[Expr, ...], value: Val, condition: Val | None
    ) -> None:
        """`buffer[index] = value` where the condition holds."""
        if condition is not None and condition.const is False:
            return
        place = self.place(buffer)
        at = self.address(buffer, index)
        lanes = self.lanes
        uniform = condition is None or not condition.lanes
        if not lanes or (at.stride == 0 and at.offsets is None and uniform):
            if value.lanes:  # every lane stores to one address: the last one wins
                ref = self.pure(f"extractelement {value.type} {value.ref}, i64 {value.lanes - 1}", value.ref)
                value = Val(ref, value.dtype)
            self._store_plain(place, at, value, 0, condition)
        elif abs(at.stride) == 1 and at.offsets is None:
            self._store_contiguous(place, at, value, condition)
        else:
            self._scatter(place, at, value, condition)
        self.forget((place.group,))

    def _to_memory(self, value: Val, lanes: int) -> str:
        x = self.use(value, lanes)
        if value.dtype is bool_:
            return self.pure(f"zext {vector_text('i1', lanes)} {x} to {vector_text('i8', lanes)}", x)
        return x

    def _store_plain(self, place: Place, at: Address, value: Val, lanes: int, condition: Val | None) -> None:
        x = self._to_memory(value, lanes)
        ty = vector_text(memory_type(place.dtype), lanes)
        store = f"  store {ty} {x}, ptr {at.ref}, align {at.align}{place.apart}"
        region = self.regions[-1]
        if condition is None:
            region.lines.append(store)
        else:
            yes, end = self.label("store"), self.label("next")
            region.lines += [
                f"  br i1 {condition.ref}, label %{yes}, label %{end}",
                f"{yes}:",
                store,
                f"  br label %{end}",
                f"{end}:",
            ]
            region.block = end

    def _store_contiguous(self, place: Place, at: Address, value: Val, condition: Val | None) -> None:
        lanes = self.lanes
        element = memory_type(place.dtype)
        masked = condition is not None and condition.lanes
        if at.stride < 0:
            at = self._shifted(place, at, 1 - lanes)
            if value.lanes:
                value = Val(self._reverse(value.ref, type_text(value.dtype, 0)), value.dtype, lanes)
            if condition is not None and masked:
                condition = Val(self._reverse(condition.ref, "i1"), bool_, lanes)
        if condition is None or not masked:
            self._store_plain(place, at, value, lanes, condition)
            return
        ty = vector_text(element, lanes)
        x = self._to_memory(value, lanes)
        name = f"@llvm.masked.store.{suffix(element, lanes)}.p0"
        self.module.declares[f"declare void {name}({ty}, ptr, <{lanes} x i1>)"] = None
        self.line(
            f"call void {name}({ty} {x}, ptr align {at.align} {at.ref}, <{lanes} x i1> {condition.ref})"
            f"{place.apart}"
        )

    def _scatter(self, place: Place, at: Address, value: Val, condition: Val | None) -> None:
        lanes = self.lanes
        element = memory_type(place.dtype)
        ty = vector_text(element, lanes)
        x = self._to_memory(value, lanes)
        pointers = self._pointers(place, at)
        mask = "splat (i1 true)" if condition is None else self.use(condition, lanes)
        name = f"@llvm.masked.scatter.{suffix(element, lanes)}.v{lanes}p0"
        self.module.declares[f"declare void {name}({ty}, <{lanes} x ptr>, <{lanes} x i1>)"] = None
        self.line(
            f"call void {name}({ty} {x}, <{lanes} x ptr> align {place.dtype.itemsize} {pointers}, "
            f"<{lanes} x i1> {mask}){place.apart}"
        )


def zeros_global() -> str:
    """What loads are diverted to when their scalar condition is false."""
    return f"{_ZEROS} = internal constant [{_ZEROS_BYTES} x i8] zeroinitializer, align 64"
