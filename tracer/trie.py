"""The trie of recorded programs: its places. Used by the lazy trace in recording.py, which walks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..ir.graph import Graph, Location
from ..ir.types import Type

if TYPE_CHECKING:
    from .segments import Segment


class TrieNode:
    """A place in the trie of recorded programs: the op that leads here and what it made, and where one can go
    from here. The same place numbers its values alike in every program.

    Attributes:
        key: what leads here from the place before.
        next: where the last program went on; the first guess for this one.
        operands, slot: numbers of the operands, and of the first result.
        enabled: the grad mode that the op was recorded in; None of what is no op.
        baked, lifted: of a Python number its first value, and whether it was seen to change.
        met: when a program that ends here ran last.
        recent: what was alive, written and lifted when a program ran here last, and that program.
        numbers: how many numbers had been lifted when `lifts` was made: those of the program that ends here.
    """

    #: segments kept for one place; a loop whose procedures change each time shall not fill memory
    SEGMENTS = 16

    __slots__ = (
        "attrs", "baked", "children", "enabled", "grads", "key", "lifted", "lifts", "loc", "met", "next",
        "numbers", "op", "operands", "phase", "programs", "recent", "regions", "segments", "slot", "types",
    )  # fmt: skip

    def __init__(self, key: Any) -> None:
        self.key = key
        self.next: TrieNode = NOWHERE
        self.children: dict[Any, TrieNode] = {}
        self.types: tuple[Type, ...] = ()
        self.grads: tuple[bool, ...] = ()
        self.operands: tuple[int, ...] = ()
        self.attrs: dict[str, Any] = {}
        self.regions: tuple[Graph, ...] = ()
        self.loc: Location | None = None
        self.phase = "forward"
        self.slot = -1
        self.enabled: bool | None = None
        self.op: Any = None
        self.baked: Any = None
        self.lifted = False
        self.numbers = -1
        self.lifts: tuple[int, ...] = ()
        self.met = 0
        self.programs: dict[Any, Any] | None = None
        self.recent: Any = None
        self.segments: dict[Any, Segment] | None = None


def numbers_of(get: Callable[[Any], int | None], operands: Sequence[Any]) -> tuple[Any, ...]:
    """`tuple(map(get, operands))`, which takes three times as long for the two or one that most ops have."""
    n = len(operands)
    if n == 2:
        a, b = operands
        return (get(a), get(b))
    if n == 1:
        return (get(operands[0]),)
    return tuple(map(get, operands))


def prune(root: TrieNode, keep: int, once: int) -> int:
    """Drops the programs that were not met for longest, until at most about `keep` places are left, those of
    programs that ran once (but for the last few) at most `once`; gives how many are left."""
    again: list[tuple[int, int, TrieNode]] = []
    single: list[tuple[int, int, TrieNode]] = []
    parent: dict[TrieNode, TrieNode] = {}
    order = [root]
    for place in order:
        if place.programs is not None:
            ran_again = any(program.runs > 1 for program in place.programs.values())
            (again if ran_again else single).append((place.met, len(parent), place))
        for child in place.children.values():
            parent[child] = place
            order.append(child)
    kept = {root}
    single.sort(reverse=True)
    again += single[:LAST]
    again.sort(reverse=True)
    _keep(kept, again, parent, keep)
    _keep(kept, single[LAST:], parent, min(keep, len(kept) + once))
    for place in kept:
        if any(child not in kept for child in place.children.values()):
            place.children = {k: child for k, child in place.children.items() if child in kept}
        place.next = NOWHERE
        if place.segments is not None:
            place.segments = {k: s for k, s in place.segments.items() if s.end in kept} or None
    return len(kept)


def _keep(
    kept: set[TrieNode], ends: list[tuple[int, int, TrieNode]], parent: dict[TrieNode, TrieNode], most: int
) -> None:
    """Adds the places that lead to the first of `ends`, as far as there is room."""
    for _, _, place in ends:
        path = []
        while place not in kept:
            path.append(place)
            place = parent[place]
        if len(kept) + len(path) > most:
            break
        kept.update(path)


#: programs that ran last may come back, whatever their size
LAST = 8
NOWHERE: TrieNode = TrieNode.__new__(TrieNode)
NOWHERE.key = None
NOWHERE.op = None
NOWHERE.next = NOWHERE
#: Counts the numbers of all programs that were seen to change.
LIFTED = [0]


def see_number(place: TrieNode, value: Any) -> None:
    """Makes a number of the program, that is `value` now, a runtime scalar if it was another before."""
    old = place.baked
    if old is not value and old != value:
        place.lifted = value == value or old == old  # NaN stays NaN
    elif not value and str(value) != str(old):  # 0.0 became -0.0
        place.lifted = True
    LIFTED[0] += place.lifted
