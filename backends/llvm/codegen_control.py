"""The control flow between kernels, written into `run`: loops whose buffers change places by swapping
pointers, loops that test a byte in memory, branches. Used by codegen_program.

A name's pointer is looked up where a kernel is called, so a rotation is a permutation of phis: it costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...ir.expr import Var
from ...ir.loops import Branch, Buffer, Kernel, Repeat, Rotation, Step, WhileStep, walk_steps

#: of a kernel: its function, the buffers and the loop variables that it takes
Call = tuple[str, list[Buffer], list[Var]]


class StepWriter:
    """Writes steps as text.

    Attributes:
        lines: what is written so far; `block` is the label of the block it ends in.
        pointers: the SSA name of each buffer's address, at this point.
        turns: the SSA name of each loop variable.
    """

    def __init__(
        self, lines: list[str], pointers: dict[Buffer, str], calls: dict[Kernel, Call], pool: str
    ) -> None:
        self.lines = lines
        self.block = "entry"
        self.pointers = pointers
        self.turns: dict[Var, str] = {}
        self.calls = calls
        self.pool = pool
        self.loops = 0
        self.open_loops: list[tuple[str, list[tuple[int, str]]]] = []  # (block before it, unfinished phis)
        self.copies = False

    def steps(self, steps: Iterable[Step]) -> None:
        """Steps in order."""
        for s in steps:
            if isinstance(s, Kernel):
                self.call(s)
            elif isinstance(s, Repeat):
                self.repeat(s)
            elif isinstance(s, WhileStep):
                self.loop(s)
            else:
                self.branch(s)

    def call(self, kernel: Kernel) -> None:
        """A kernel on what its buffers' names stand for now."""
        name, buffers, variables = self.calls[kernel]
        arguments = [
            *[f"ptr {self.pointers[b]}" for b in buffers],
            *[f"i64 {self.turns[v]}" for v in variables],
        ]
        self.lines.append(f"  call void @{name}({', '.join([*arguments, f'i64 {self.pool}'])})")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    # --- loops ----------------------------------------------------------------------------------------------

    def repeat(self, s: Repeat) -> None:
        """A counted loop."""
        if s.extent < 1:
            return
        n = self.number()
        start, step, last = (s.extent - 1, -1, 0) if s.reverse else (0, 1, s.extent - 1)
        own = self.enter(f"repeat{n}", s.rotate)
        turn = self.turns[s.var] = f"%turn{n}"
        self.phi(turn, "i64", str(start), f"%turn{n}.next")
        self.steps(s.body)
        self.lines += [
            f"  %turn{n}.next = add nsw i64 {turn}, {step}",
            f"  %turn{n}.more = icmp ne i64 {turn}, {last}",
        ]
        self.leave(f"%turn{n}.more", f"repeat{n}", f"repeated{n}")
        self.pointers.update(own)

    def loop(self, s: WhileStep) -> None:
        """Tests, then the body, until the test fails."""
        n = self.number()
        own = self.enter(f"test{n}", s.rotate)
        if s.most is not None:
            self.phi(f"%trip{n}", "i64", "0", f"%trip{n}.next")
        self.steps(s.test)
        more = f"%more{n}"
        self.condition(more, s.cond)
        if s.most is not None:
            self.lines += [
                f"  %few{n} = icmp slt i64 %trip{n}, {s.most}",
                f"  %both{n} = and i1 {more}, %few{n}",
            ]
            more = f"%both{n}"
        self.lines.append(f"  br i1 {more}, label %body{n}, label %after{n}")
        self.label(f"body{n}")
        held = dict(self.pointers)
        self.steps(s.body)
        if s.most is not None:
            self.lines.append(f"  %trip{n}.next = add nuw nsw i64 %trip{n}, 1")
        self.leave("", f"test{n}", f"after{n}")
        self.pointers.update(held)
        for target, name in s.results:
            self.copies = True
            to, source = self.pointers[target], self.pointers[name]
            self.lines.append(
                f"  call void @llvm.memmove.p0.p0.i64(ptr {to}, ptr {source}, i64 {name.nbytes}, i1 false)"
            )
        self.pointers.update(own)

    def enter(self, head: str, rotations: tuple[Rotation, ...]) -> dict[Buffer, str]:
        """Begins the block a loop comes back to; gives the pointers that the rotated names have outside."""
        before = self.block
        self.lines.append(f"  br label %{head}")
        self.label(head)
        self.open_loops.append((before, []))
        own = {b: self.pointers[b] for names in rotations for b in names}
        inside = {b: f"%{head}.{i}" for i, b in enumerate(own)}
        for names in rotations:
            for b, following in zip(names, [*names[1:], names[0]]):
                self.phi(inside[b], "ptr", own[b], inside[following])
        self.pointers.update(inside)
        return own

    def phi(self, name: str, ty: str, first: str, later: str) -> None:
        """A value that is `first` on entry and `later` after a turn; written when the loop's end is known."""
        before, open_phis = self.open_loops[-1]
        open_phis.append((len(self.lines), f"  {name} = phi {ty} [ {first}, %{before} ], [ {later}, "))
        self.lines.append("")

    def leave(self, more: str, head: str, following: str) -> None:
        """Ends a loop's body: back to `head` if `more` holds ("": always)."""
        _, open_phis = self.open_loops.pop()
        for at, text in open_phis:
            self.lines[at] = f"{text}%{self.block} ]"
        target = f"i1 {more}, label %{head}, label %{following}" if more else f"label %{head}"
        self.lines.append(f"  br {target}")
        self.label(following)

    # --- branches -------------------------------------------------------------------------------------------

    def branch(self, s: Branch) -> None:
        """One of two blocks."""
        n = self.number()
        self.condition(f"%taken{n}", s.cond)
        self.lines.append(f"  br i1 %taken{n}, label %then{n}, label %else{n}")
        for name, steps in (("then", s.then), ("else", s.other)):
            self.label(f"{name}{n}")
            self.steps(steps)
            self.lines.append(f"  br label %joined{n}")
        self.label(f"joined{n}")

    def condition(self, name: str, cond: Buffer) -> None:
        self.lines += [
            f"  {name}.byte = load i8, ptr {self.pointers[cond]}, align 1",
            f"  {name} = icmp ne i8 {name}.byte, 0",
        ]

    def number(self) -> int:
        self.loops += 1
        return self.loops


def alignments(steps: Iterable[Step], own: Callable[[Buffer], int]) -> dict[Buffer, int]:
    """The bytes that every memory a rotated name may stand for is aligned to; `own` is of a buffer's own
    memory."""
    rotations = [names for s in walk_steps(steps) if isinstance(s, (Repeat, WhileStep)) for names in s.rotate]
    out = {b: own(b) for names in rotations for b in names}
    changed = True
    while changed:  # a name may rotate in several loops, one inside the other
        changed = False
        for names in rotations:
            low = min(out[b] for b in names)
            changed = changed or any(out[b] != low for b in names)
            out.update((b, low) for b in names)
    return out
