"""All rewrite rules, gathered: importing this registers them and the ops they are about."""

from __future__ import annotations

from functools import cache

from . import rules_logic, rules_movement, rules_reduce, rules_scalar  # noqa: F401  (they register)
from .rewrite import RULES, Rule, RuleSet

__all__ = ["RULES", "Rule", "rule_set"]


@cache
def rule_set(fast: bool) -> RuleSet:
    """The rules that keep every NaN, Inf and signed zero, or with `fast` all rules."""
    return RuleSet(r for r in RULES.values() if fast or not r.fast)
