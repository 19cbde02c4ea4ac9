"""Autograd as PyTorch users know it: backward, grad_fn, accumulation, modes, hooks, higher derivatives,
errors.
"""

import pytest
import tracegrad as tg
from tracegrad.ir.errors import GradError


def test_the_walk_of_the_autograd_post() -> None:
    x1 = tg.ones(2, 2, requires_grad=True)
    x2 = tg.tensor(1.1, requires_grad=True)
    y = x1 * (x2 + 2)
    z = y.pow(2) * 3
    out = z.mean()
    y.retain_grad()
    z.retain_grad()
    names = []
    fn = out.grad_fn
    while fn is not None and fn.next_functions:
        names.append(fn.name())
        fn = fn.next_functions[0][0]
    assert names == ["MeanBackward0", "MulBackward0", "PowBackward0", "MulBackward0"]
    assert fn.name() == "AccumulateGrad" and fn.variable is x1
    mul = out.grad_fn.next_functions[0][0].next_functions[0][0].next_functions[0][0]
    add = mul.next_functions[1][0]
    assert add.name() == "AddBackward0"
    assert add.next_functions[0][0].variable is x2
    assert out.grad_fn.next_functions[0][0].next_functions[1] == (None, 0)
    out.backward()
    assert z.grad.tolist() == [[0.25, 0.25]] * 2
    assert y.grad.numpy() == pytest.approx(4.65)
    assert x2.grad.item() == pytest.approx(18.6)
    assert x1.grad.numpy() == pytest.approx(14.415)


def test_grad_accumulates_and_zeroes() -> None:
    w = tg.tensor([1.0, 2.0], requires_grad=True)
    for n in (1, 2):
        (w * w).sum().backward()
        assert w.grad.tolist() == [2.0 * n, 4.0 * n]
    g = w.grad
    w.grad.zero_()
    assert g is w.grad and g.tolist() == [0, 0]
    w.grad = None
    (w * 3).sum().backward()
    assert w.grad.tolist() == [3, 3]


def test_training_by_hand_under_no_grad() -> None:
    w = tg.tensor([1.0], requires_grad=True)
    values = []
    for _ in range(5):
        loss = (w * w).sum()
        loss.backward()
        with tg.no_grad():
            w.sub_(0.1 * w.grad)
            w.grad.zero_()
        values.append(w.item())
    assert values == pytest.approx([0.8, 0.64, 0.512, 0.4096, 0.32768], rel=1e-6)
    assert w.is_leaf and w.requires_grad


def test_flush_between_forward_and_backward_keeps_what_backward_reads() -> None:
    w = tg.tensor([0.5, 1.5], requires_grad=True)
    h = (w * w).exp()
    loss = (h * h).sum()
    value = loss.item()
    loss.backward()
    import math

    want = [math.exp(2 * a * a) * 4 * a for a in (0.5, 1.5)]
    assert value == pytest.approx(sum(math.exp(2 * a * a) for a in (0.5, 1.5)), rel=1e-5)
    assert w.grad.tolist() == pytest.approx(want, rel=1e-5)


def test_detach_no_grad_and_requires_grad() -> None:
    x = tg.ones(2, requires_grad=True)
    assert not (x.detach() * 2).requires_grad
    with tg.no_grad():
        assert not (x * 2).requires_grad

    @tg.no_grad()
    def f(a: tg.Tensor) -> tg.Tensor:
        return a * 2

    assert not f(x).requires_grad
    with tg.no_grad(), tg.enable_grad():
        assert (x * 2).requires_grad
    tg.set_grad_enabled(False)
    assert not tg.is_grad_enabled()
    tg.set_grad_enabled(True)
    y = (x * 2).detach().requires_grad_()
    (y * 3).sum().backward()
    assert y.grad.tolist() == [3, 3] and x.grad is None


def test_grad_function_and_second_order() -> None:
    x = tg.tensor([2.0, 3.0], requires_grad=True)
    (g,) = tg.autograd.grad((x**3).sum(), x, create_graph=True)
    assert g.tolist() == [12, 27]
    (h,) = tg.autograd.grad(g.sum(), x)
    assert h.tolist() == [12, 18]
    assert x.grad is None
    unused = tg.ones(1, requires_grad=True)
    assert tg.autograd.grad((x * 1).sum(), [x, unused], allow_unused=True)[1] is None
    with pytest.raises(GradError, match="input 0"):
        tg.autograd.grad((x * 1).sum(), unused)


def test_broadcast_gradients_are_summed() -> None:
    b = tg.zeros(1, 3, requires_grad=True)
    s = tg.tensor(2.0, requires_grad=True)
    ((tg.ones(4, 3) + b) * s).sum().backward()
    assert b.grad.tolist() == [[8, 8, 8]] and s.grad.item() == 12


def test_hooks() -> None:
    x = tg.ones(2, requires_grad=True)
    seen = []
    y = x * 3
    y.register_hook(lambda g: seen.append(g.tolist()))
    handle = x.register_hook(lambda g: g * 2)
    y.sum().backward()
    assert seen == [[1, 1]] and x.grad.tolist() == [6, 6]
    handle.remove()
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_inplace_on_non_leaves_flows_through() -> None:
    x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x * 2
    y[0] = 10.0
    y[1:].mul_(5)
    y.sum().backward()
    assert x.grad.tolist() == [0, 10, 10]


def test_data_assignment_keeps_the_leaf() -> None:
    w = tg.tensor([1.0], requires_grad=True)
    (w * 2).sum().backward()
    with tg.no_grad():
        w.data = w.data - w.grad * 0.25
    assert w.tolist() == [0.5] and w.requires_grad and w.is_leaf
    w.data.mul_(4)
    assert w.tolist() == [2.0]
    w.grad = None
    (w * w).sum().backward()
    assert w.grad.tolist() == [4.0]


def test_errors() -> None:
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(GradError, match=r"second time.*retain_graph"):
        loss.backward()
    assert x.grad.tolist() == [2, 4]
    with pytest.raises(GradError, match="floating-point"):
        tg.tensor([1, 2], requires_grad=True)
    with pytest.raises(GradError, match="floating-point"):
        tg.tensor([1, 2]).requires_grad_()
    with pytest.raises(GradError, match="scalars"):
        (x * 2).backward()
    with pytest.raises(GradError, match="does not require grad"):
        tg.ones(1).sum().backward()
    with pytest.raises(GradError, match="no_grad"):
        x.add_(1)
    with pytest.raises(GradError, match="assigned to a tensor of type"):
        x.grad = tg.zeros(3)
    with pytest.raises(GradError, match="detach"):
        (x * 2).requires_grad_(False)


def test_retain_graph_allows_a_second_backward() -> None:
    x = tg.tensor([3.0], requires_grad=True)
    loss = (x * x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert x.grad.tolist() == [12]


def test_two_losses_share_a_trunk() -> None:
    x = tg.tensor([2.0], requires_grad=True)
    h = x * x
    a, b = (h * 2).sum(), (h * 3).sum()
    tg.autograd.backward([a, b])
    assert x.grad.tolist() == [20]


def test_gradient_argument() -> None:
    x = tg.ones(2, requires_grad=True)
    y = x * 4
    y.backward(tg.tensor([1.0, 0.5]))
    assert x.grad.tolist() == [4, 2]


def test_freed_graph_lets_go_of_what_it_saved() -> None:
    x = tg.ones(8, requires_grad=True)
    loss = ((x * 2).exp() ** 2).sum()
    loss.item()
    node = loss._value().node
    assert node.operands
    loss.backward()
    x.grad.tolist()
    assert all(getattr(v, "buffer", None) is None for v in node.operands)
    assert loss.grad_fn.name() == "SumBackward0" and "SumBackward0" in repr(loss)
