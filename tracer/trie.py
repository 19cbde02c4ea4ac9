"""The trie of recorded programs: its places. Used by the lazy trace in recording.py, which walks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..ir.graph import Graph, Location
from ..ir.op import Op
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
        baked, lifted: of a Python number its first value, and whether it was seen to change.
        numbers: how many numbers had been lifted when `lifts` was made: those of the program that ends here.
    """

    #: segments kept for one place; a loop whose procedures change each time shall not fill memory
    SEGMENTS = 16

    __slots__ = (
        "attrs", "baked", "children", "grads", "key", "lifted", "lifts", "loc", "next", "numbers", "op",
        "operands", "phase", "programs", "regions", "segments", "slot", "types",
    )  # fmt: skip

    op: Op

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
        self.baked: Any = None
        self.lifted = False
        self.numbers = -1
        self.lifts: tuple[int, ...] = ()
        self.programs: dict[Any, Any] | None = None
        self.segments: dict[Any, Segment] | None = None


NOWHERE: TrieNode = TrieNode.__new__(TrieNode)
NOWHERE.key = None
#: Counts the numbers of all programs that were seen to change.
LIFTED = [0]
