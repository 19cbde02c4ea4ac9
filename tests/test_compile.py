"""`compile`: state captured and updated in place, arguments, guards, gradients across the boundary, repeat,
errors.
"""

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import OpError, TraceError


def test_pure_function_and_signatures() -> None:
    @tg.compile
    def f(x: tg.Tensor, k: int = 2) -> tg.Tensor:
        return (x * k).sum()

    assert f(tg.ones(3)).item() == 6
    assert f(tg.ones(4)).item() == 8
    assert f(tg.ones(4), k=5).item() == 20
    assert f(tg.tensor([1.0, 2.0, 3.0])).item() == 12
    assert len(f.specializations) == 3


def test_nested_results_and_arguments() -> None:
    @tg.compile
    def f(batch: dict[str, tg.Tensor], pair: tuple[tg.Tensor, float]) -> dict[str, Any]:
        x = batch["x"]
        return {"sum": x + pair[0], "both": (x * pair[1], "label"), "none": None}

    out = f({"x": tg.ones(2)}, (tg.tensor([1.0, 2.0]), 3.0))
    assert out["sum"].tolist() == [2, 3]
    assert out["both"][0].tolist() == [3, 3] and out["both"][1] == "label" and out["none"] is None


def test_a_training_step_is_one_program() -> None:
    w = tg.tensor([1.0, -2.0], requires_grad=True)

    @tg.compile
    def step(x: tg.Tensor) -> tg.Tensor:
        w.grad = None
        loss = ((w * x) ** 2).sum()
        loss.backward()
        with tg.no_grad():
            w.sub_(0.1 * w.grad)
        return loss

    x = tg.tensor([1.0, 2.0])
    losses = [step(x).item() for _ in range(4)]
    ref, want = np.array([1.0, -2.0]), []
    for _ in range(4):
        want.append(float(((ref * [1, 2]) ** 2).sum()))
        ref = ref - 0.1 * 2 * ref * np.array([1, 4])
    assert losses == pytest.approx(want, rel=1e-5)
    assert w.tolist() == pytest.approx(ref.tolist(), rel=1e-5)
    assert w.requires_grad and w.is_leaf
    graph = step.lower(x).graph
    assert len(graph.updates) == 1 and {n.phase for n in graph.nodes} >= {"forward", "backward"}
    with pytest.raises(TraceError, match="keep_grads"):
        print(w.grad)


def test_keep_grads() -> None:
    w = tg.tensor([1.0], requires_grad=True)

    def body() -> tg.Tensor:
        w.grad = None
        loss = (w * 3).sum()
        loss.backward()
        with tg.no_grad():
            w.sub_(w.grad)
        return loss

    tg.compile(body, keep_grads=True)()
    assert w.grad.tolist() == [3]


def test_gradients_that_accumulate_between_calls() -> None:
    w = tg.tensor([1.0], requires_grad=True)

    @tg.compile
    def accumulate() -> None:
        (w * 2).sum().backward()

    for n in (1, 2, 3):
        accumulate()
        assert w.grad.tolist() == [2.0 * n]
    w.grad = None
    accumulate()
    assert w.grad.tolist() == [2.0]


def test_zeroing_grads_in_place_as_in_the_seeds() -> None:
    w = tg.tensor([4.0], requires_grad=True)

    @tg.compile
    def step() -> tg.Tensor:
        loss = (w * w).sum()
        loss.backward()
        with tg.no_grad():
            w.sub_(0.25 * w.grad)
            w.grad.zero_()
        return loss

    assert [step().item() for _ in range(3)] == [16, 4, 1]
    assert step.repeat(2).tolist() == [0.25, 0.0625]
    assert w.grad.tolist() == [0]


def test_repeat_stacks_outputs() -> None:
    n = tg.zeros(())

    @tg.compile
    def tick() -> tuple[tg.Tensor, tg.Tensor]:
        n.add_(1)
        return n * 1, tg.stack([n, n * n])

    a, b = tick.repeat(4)
    assert a.tolist() == [1, 2, 3, 4]
    assert b.tolist() == [[1, 1], [2, 4], [3, 9], [4, 16]]
    assert n.item() == 4
    with pytest.raises(TraceError, match="n >= 1"):
        tick.repeat(0)


def test_backward_outside_flows_into_a_compiled_function() -> None:
    w = tg.tensor([2.0, 3.0], requires_grad=True)
    f = tg.compile(lambda x: (w * x).exp())
    x = tg.tensor([0.5, 0.25], requires_grad=True)
    y = f(x)
    assert y.requires_grad and y.grad_fn.name() == "CompiledFunctionBackward"
    y.sum().backward()
    e = np.exp([1.0, 0.75])
    assert w.grad.tolist() == pytest.approx((e * [0.5, 0.25]).tolist(), rel=1e-5)
    assert x.grad.tolist() == pytest.approx((e * [2, 3]).tolist(), rel=1e-5)


def test_arguments_written_in_place() -> None:
    @tg.compile
    def f(x: tg.Tensor) -> None:
        x[0] = 7
        x.mul_(2)

    a = tg.ones(3)
    f(a)
    assert a.tolist() == [14, 2, 2]
    f(a)
    assert a.tolist() == [14, 4, 4]


def test_views_of_captured_state() -> None:
    base = tg.zeros(4)
    row = base[1:3]

    @tg.compile
    def f() -> tg.Tensor:
        row.add_(1)
        return base.sum()

    assert f().item() == 2
    assert f().item() == 4
    base.zero_()
    assert f().item() == 2
    assert base.tolist() == [0, 1, 1, 0]


def test_branch_on_a_traced_value_names_line_and_fix() -> None:
    @tg.compile
    def f(x: tg.Tensor) -> tg.Tensor:
        if x.sum() > 0:
            return x
        return -x

    with pytest.raises(TraceError, match=r"(?s)test_compile.py:\d+.*while 'f' is being compiled.*where") as e:
        f(tg.ones(2))
    assert "gt at test_compile.py" in str(e.value)


def test_item_under_compile_leaves_state_as_it_was() -> None:
    w = tg.tensor([1.0], requires_grad=True)

    @tg.compile
    def f() -> float:
        w.grad = None
        loss = (w * 2).sum()
        loss.backward()
        with tg.no_grad():
            w.mul_(10)
        return loss.item()

    with pytest.raises(TraceError, match=r"\.item\(\)"):
        f()
    assert w.tolist() == [1.0] and w.grad is None and w.is_leaf


def test_shape_errors_inside_name_the_user_line() -> None:
    @tg.compile
    def f(x: tg.Tensor) -> tg.Tensor:
        return x @ x

    with pytest.raises(OpError, match=r"matmul\(f32\[2,3\], f32\[2,3\]\) at test_compile.py"):
        f(tg.ones(2, 3))


def test_trace_gives_the_graph_alone() -> None:
    graph = tg.trace(lambda x: (x * 2).relu())(tg.ones(3))
    assert [n.op.name for n in graph.nodes] == ["constant", "mul", "relu"]
    assert str(graph).startswith("graph ")


def test_nested_compiled_functions_are_one_program() -> None:
    inner = tg.compile(lambda x: x + 1)
    outer = tg.compile(lambda x: inner(x) * 2)
    assert outer(tg.ones(2)).tolist() == [4, 4]
    assert not inner.specializations


def test_tensors_made_inside_are_constants() -> None:
    @tg.compile
    def f() -> tg.Tensor:
        t = tg.tensor([1.0, 2.0])
        t.add_(1)
        return t

    assert f().tolist() == [2, 3]
    assert f().tolist() == [2, 3]


def test_stages_have_texts() -> None:
    step = tg.compile(lambda x: (x * 2).sum())
    lowered = step.lower(tg.ones(8))
    assert lowered.as_text("graph").startswith("graph ")
    assert "sum" in lowered.as_text("optimized")
    assert "for" in lowered.as_text("loops") or "let" in lowered.as_text("loops")
    assert "define" in lowered.as_text("llvm")
    assert "ret" in lowered.as_text("asm")
    with pytest.raises(ValueError, match="no stage"):
        lowered.as_text("nonsense")


def test_calls_from_several_threads() -> None:
    import threading

    f = tg.compile(lambda x: (x * x).sum())
    f(tg.ones(1000))
    results: list[float] = []

    def work(k: int) -> None:
        x = tg.full((1000,), float(k))
        results.extend(f(x).item() for _ in range(20))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(set(results)) == [0, 1000, 4000, 9000] and len(results) == 80


def test_written_views_as_arguments() -> None:
    @tg.compile
    def f(x: tg.Tensor) -> None:
        x.add_(1)

    base = tg.zeros(4)
    f(base[1:3])
    f(base[1:3])
    assert base.tolist() == [0, 2, 2, 0]
    f.repeat(2, base[0:1])
    assert base.tolist() == [2, 2, 2, 0]


def test_one_tensor_given_twice_or_also_captured() -> None:
    w = tg.tensor([1.0, 2.0, 3.0])

    @tg.compile
    def f(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        x.mul_(2)
        w.add_(y)
        return x + y

    a = tg.tensor([1.0, 1.0, 1.0])
    assert f(a, a).tolist() == [4, 4, 4]  # both names see the write
    assert a.tolist() == [2, 2, 2] and w.tolist() == [3, 4, 5]
    assert f(a, w).tolist() == [7, 8, 9]
    assert a.tolist() == [4, 4, 4] and w.tolist() == [6, 8, 10]
