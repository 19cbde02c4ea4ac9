"""Exact ratios of sizes: how many iterations of one loop are as much as one of another. Used where loops are
joined; the standard library's Fraction is slow, and to load it (with decimal numbers) slower than to schedule
a small program."""

from __future__ import annotations

from math import gcd


class Ratio:
    """`numerator / denominator` in lowest terms, the denominator positive."""

    __slots__ = ("denominator", "numerator")

    def __init__(self, numerator: int, denominator: int = 1) -> None:
        if not denominator:
            raise ZeroDivisionError(f"{numerator}/0")
        common = gcd(numerator, denominator) if denominator > 0 else -gcd(numerator, denominator)
        self.numerator, self.denominator = numerator // common, denominator // common

    def __mul__(self, other: Ratio | int) -> Ratio:
        if isinstance(other, int):
            return Ratio(self.numerator * other, self.denominator)
        return Ratio(self.numerator * other.numerator, self.denominator * other.denominator)

    __rmul__ = __mul__

    def __truediv__(self, other: Ratio | int) -> Ratio:
        """Raises ZeroDivisionError."""
        if isinstance(other, int):
            return Ratio(self.numerator, self.denominator * other)
        return Ratio(self.numerator * other.denominator, self.denominator * other.numerator)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.denominator == 1 and self.numerator == other
        if not isinstance(other, Ratio):
            return NotImplemented
        return self.numerator == other.numerator and self.denominator == other.denominator

    def __hash__(self) -> int:
        return hash((self.numerator, self.denominator))

    def __repr__(self) -> str:
        return f"{self.numerator}/{self.denominator}"
