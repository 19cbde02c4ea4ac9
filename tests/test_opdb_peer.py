"""The sweep over PyTorch's operator database: every operator of the public list agrees, or is known not to.

`python tests/opdb.py` prints what fails; this file holds the rate.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="PyTorch's operator database imports it")
pytestmark = pytest.mark.peer

#: What does not agree, and why. An entry that agrees now fails the test: take it out.
KNOWN = {
    "norm.nuc": "the nuclear norm needs singular values",
}


@pytest.fixture(scope="module")
def opdb() -> Any:
    import opdb  # takes seconds: the database is large

    return opdb


@pytest.fixture(scope="module")
def operators(opdb: Any) -> list[Any]:
    names = json.loads((Path(__file__).parent / "opdb_names.json").read_text(encoding="utf-8"))
    return opdb.in_scope(set(names))


@pytest.fixture(scope="module")
def outcomes(opdb: Any, operators: list[Any]) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return opdb.sweep(operators, count=8, compiled=True)


def test_rate_of_agreeing_operators(opdb: Any, outcomes: list[Any]) -> None:
    print("\n" + opdb.table(outcomes))
    assert len(outcomes) > 300, "the database or the list of names has changed"
    assert sum(o.agrees for o in outcomes) >= 0.95 * len(outcomes), opdb.table(outcomes)


def test_what_fails_is_known(outcomes: list[Any]) -> None:
    failing = {o.name: o.reason for o in outcomes if not o.agrees}
    assert not failing.keys() - KNOWN.keys(), {n: failing[n] for n in failing.keys() - KNOWN.keys()}
    assert not KNOWN.keys() - failing.keys(), f"agree now: {sorted(KNOWN.keys() - failing.keys())}"


def test_a_wrong_result_is_found(opdb: Any, operators: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: wrong values, dtypes, shapes and gradients don't pass."""
    ours, good = opdb.tracegrad, torch.tensor([1.0, 2.0])
    wrong = (ours.tensor([1.0, 2.1]), ours.tensor([1, 2]), ours.tensor([[1.0, 2.0]]), 1.0, ours.tensor([1.0]))
    for bad in wrong:
        with pytest.raises(opdb.Difference):
            opdb.compare(bad, good, "x")
    opdb.compare(ours.tensor([1.0, 2.0]), good, "x")
    sigmoid = next(op for op in operators if op.name == "sigmoid")
    right = ours.sigmoid
    # The right value with a wrong slope.
    slanted = lambda x: right(x) + (x - x.detach()) if x.requires_grad else right(x)  # noqa: E731
    monkeypatch.setattr(ours, "sigmoid", slanted)
    assert "gradient" in opdb.Sweep(count=2).run(sigmoid).reason


def test_bad_inputs_are_errors(opdb: Any, operators: list[Any]) -> None:
    """What PyTorch's database knows as bad input raises here too, and an error of ours. Not counted: numbers
    in the place of tensors, which are taken, and `out=` tensors that overlap."""
    taken, count = [], 0
    for op in operators:
        found, wrong = opdb.accepted_errors(op)
        count += found
        taken += [
            line for line in wrong if "not int" not in line and "(int, " not in line and "out=" not in line
        ]
    assert count > 300
    assert len(taken) <= 2, "\n".join(taken)
