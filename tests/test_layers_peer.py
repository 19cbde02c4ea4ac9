"""Layers with arguments that are not the defaults, against PyTorch: text, state, values, first and second
gradients, and which of them refuse."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import TracegradError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

#: Layers of [N, C, H, W]; they are also given [C, H, W] and no samples.
IMAGE = """
    LeakyReLU(0.2,True) ELU(.3) CELU(2.0) GELU('tanh') Softplus(2,1.) Hardtanh(-2,.5) Threshold(.1,20)
    RReLU(.2,.2) Softmax(1) LogSoftmax(-1) Softmin(0) Softmax2d() PReLU(4,.1) GLU(1) Softshrink(.1)
    Flatten(0,-2) Unflatten(-1,(2,3)) ZeroPad2d((1,-1,0,2)) ConstantPad2d((1,2,0,1),3.5)
    ReflectionPad2d((1,2,0,1)) ReplicationPad2d((1,-1,2,0)) CircularPad2d(1) PixelShuffle(2)
    PixelUnshuffle(2) ChannelShuffle(2) Unfold((2,3),2,1,2) BatchNorm2d(4) BatchNorm2d(4,momentum=None)
    BatchNorm2d(4,1e-3,.3,False) BatchNorm2d(4,bias=False) BatchNorm2d(4,track_running_stats=False)
    InstanceNorm2d(4,track_running_stats=True) InstanceNorm2d(4) LayerNorm((6,6),bias=False)
    RMSNorm(6,eps=1e-3) GroupNorm(2,4) LocalResponseNorm(3,.1,.5,2.)
    Upsample(scale_factor=1.7,mode='nearest-exact') Upsample(size=7,mode='bilinear',align_corners=True)
    Upsample(scale_factor=(1.5,2.),mode='bicubic')
    Upsample(scale_factor=1.7,mode='bilinear',recompute_scale_factor=True)
    MaxPool2d((2,3),(1,2),(1,0),2) MaxPool2d(3,2,1,1,True,True) AvgPool2d(3,2,1,True,False)
    AvgPool2d(3,2,1,divisor_override=2) LPPool2d(1.5,3,2,True) AdaptiveAvgPool2d((None,4))
    AdaptiveMaxPool2d((5,7),True) Conv2d(4,6,(2,3),padding='same')
    Conv2d(4,6,3,padding='same',dilation=2,padding_mode='reflect') Conv2d(4,8,3,groups=4,bias=False)
    Conv2d(4,6,3,(2,1),(1,2),(2,1)) Conv2d(4,6,3,padding=(2,1),padding_mode='replicate')
    Conv2d(4,6,3,padding=1,padding_mode='circular')
    ConvTranspose2d(4,6,(2,3),(3,2),(1,0),(2,1),2,False,2) ConvTranspose2d(4,8,3,dilation=2)
    Linear(6,3,bias=False)
""".split()
#: Layers that refuse [N, C, H, W].
WRONG = """
    BatchNorm2d(5) GroupNorm(3,4) LayerNorm(5) Conv2d(3,6,3) Conv2d(4,6,7) Conv2d(4,6,3,2,'same')
    Conv2d(4,6,3,groups=3) MaxPool2d(9) MaxPool2d(2,1,2) ReflectionPad2d(6) PixelShuffle(3)
    Softmax(dim=5) Unflatten(1,(3,3)) Dropout(1.5) ConvTranspose2d(4,6,3,output_padding=2) Upsample()
    Upsample(scale_factor=2,mode='linear') GLU(4) PReLU(3) Embedding(9,2)
""".split()
LINES = """
    Conv1d(3,6,2,1,'same',2,3) ConvTranspose1d(3,6,4,3,groups=3,dilation=2,bias=False)
    MaxPool1d(3,2,1,1,True,True) AvgPool1d(3,2,1,True,False) LPPool1d(2,3,1,True) AdaptiveAvgPool1d(13)
    AdaptiveMaxPool1d(4,True) BatchNorm1d(3) InstanceNorm1d(3,1e-3,.2,True)
    Upsample(size=5,mode='linear',align_corners=True) ReplicationPad1d((1,2)) CircularPad1d(2)
""".split()
VOLUMES = """
    Conv3d(3,6,(1,2,3),(1,2,1),(0,1,1),1,3) ConvTranspose3d(3,6,3,(1,2,2),1,(0,1,1),3,False,(1,1,2))
    MaxPool3d(3,2,1,ceil_mode=True) AvgPool3d(2,2,0,False,True,3) LPPool3d(2,2)
    AdaptiveMaxPool3d((2,3,None),True) BatchNorm3d(3) ReflectionPad3d(1)
    Upsample(size=(2,5,7),mode='trilinear',align_corners=True)
""".split()
#: PyTorch fails on these by accident: its gradients of nothing have another shape, or are not there.
SKIP = {("PixelShuffle(2)", 0), ("PixelUnshuffle(2)", 0), ("InstanceNorm2d(4,track_running_stats=True)", 0)}
SKIP |= {("InstanceNorm1d(3,1e-3,.2,True)", 0)}


def cases() -> list[tuple[str, tuple[int, ...]]]:
    out: list[tuple[str, tuple[int, ...]]] = []
    for layers, shape in ((IMAGE, (2, 4, 6, 6)), (LINES, (2, 3, 9)), (VOLUMES, (2, 3, 4, 5, 6))):
        for e in layers:
            out += [(e, shape), (e, (0, *shape[1:]))]
            if "Norm" not in e and "Upsample" not in e:
                out.append((e, shape[1:]))
    out += [(e, (2, 4, 6, 6)) for e in WRONG]
    return [(e, s) for e, s in out if (e, s[0]) not in SKIP]


def weights(lib: Any, t: Any) -> Any:
    n = int(np.prod(tuple(t.shape)))
    return lib.tensor(np.cos(np.arange(n) * 0.7 + 0.3).reshape(tuple(t.shape)).astype("f4"))


def everything(lib: Any, text: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a layer shows of itself and computes, as text and arrays."""
    lib.manual_seed(3)
    layer = eval(f"nn.{text}", {"nn": lib.nn})
    found: dict[str, Any] = {"text": repr(layer)}
    for k, v in layer.state_dict().items():
        found[f"initial {k}"] = v.numpy().copy()
    x = lib.tensor(np.random.default_rng(0).standard_normal(shape).astype("f4") * 2).requires_grad_()
    found["parameters"] = [k for k, _ in layer.named_parameters()]
    found["buffers"] = [k for k, _ in layer.named_buffers()]
    for training in (True, False):
        layer.train(training)
        out = layer(x * 1)
        outs = list(out) if isinstance(out, tuple) else [out]
        leaves = [x, *layer.parameters()]
        loss = sum((o * weights(lib, o)).sum() for o in outs if o.is_floating_point())
        firsts = lib.autograd.grad(loss, leaves, allow_unused=True, create_graph=not training)
        for i, t in enumerate([*outs, *firsts]):
            found[f"{training} {i}"] = None if t is None else t.detach().numpy()
        if not training:
            again = [g for g in firsts if g is not None and g.requires_grad]
            seconds: Any = [None] * len(leaves)
            if again:
                loss = sum((g * weights(lib, g)).sum() for g in again)
                seconds = lib.autograd.grad(loss, leaves, allow_unused=True)
            for i, (g, t) in enumerate(zip(seconds, leaves)):  # None means zero
                zero = np.zeros(tuple(t.shape), "f4")
                found[f"second {i}"] = zero if g is None else g.detach().numpy(force=True)
    for k, v in layer.state_dict().items():
        found[f"final {k}"] = v.numpy().copy()
    return found


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    if list(theirs) != list(ours):
        return f"{list(theirs)} {list(ours)}"
    for key, a in theirs.items():
        b = ours[key]
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            if type(a) is not type(b) or a != b:
                return f"{key}: {a} {b}"
        elif a.dtype != b.dtype or a.size != b.size or not np.allclose(a, b, 1e-4, 1e-4, equal_nan=True):
            return f"{key}: {a.dtype} {a.shape} {b.dtype} {b.shape}\n{a}\n{b}"
    return ""


@pytest.mark.parametrize("part", range(4))
def test_layers_with_arguments_like_pytorch(part: int) -> None:
    wrong: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text, shape in cases()[part::4]:
            theirs: Any
            try:
                theirs = everything(torch, text, shape)
            except Exception as e:
                theirs = e
            try:
                ours = everything(tg, text, shape)
            except TracegradError as e:
                if isinstance(theirs, dict):
                    wrong.append(f"{text} {shape}: {e}")
                elif "test_layers_peer" not in str(e) and "<string>" not in str(e):
                    wrong.append(f"{text} {shape}: no line in {e}")
                continue
            if not isinstance(theirs, dict):
                wrong.append(f"{text} {shape}: PyTorch refuses: {theirs}")
            elif found := difference(theirs, ours):
                wrong.append(f"{text} {shape}: {found}")
    assert not wrong, "\n".join(wrong)


def spectral(lib: Any, layer: str, options: str, shape: tuple[int, ...], compiled: bool) -> dict[str, Any]:
    utils = lib.nn.utils
    lib.manual_seed(0)
    m = utils.spectral_norm(eval(f"nn.{layer}", {"nn": lib.nn}), **eval(f"dict({options})"))
    found: dict[str, Any] = {"state": list(m.state_dict()), "text": repr(m)}
    sgd = lib.optim.SGD(m.parameters(), 0.1)

    def step(x: Any) -> Any:
        sgd.zero_grad()
        loss = m(x).pow(2).sum()
        loss.backward()
        sgd.step()
        return loss.detach()

    run = tg.compile(step) if compiled and lib is tg else step
    x = lib.linspace(-1, 1, int(np.prod(shape))).view(*shape)
    for i in range(4):
        found[f"loss {i}"] = run(x).numpy()
    m.eval()
    found["eval"], found["again"] = m(x).detach().numpy(), m(x).detach().numpy()
    utils.remove_spectral_norm(m)
    found["removed"], found["keys"] = m(x).detach().numpy(), list(m.state_dict())
    return found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", ["", "n_power_iterations=3", "dim=1"])
def test_spectral_norm_like_pytorch(options: str, compiled: bool) -> None:
    for layer, shape in (("Linear(3,4)", (5, 3)), ("ConvTranspose1d(2,3,2)", (1, 2, 4))):
        theirs, ours = (spectral(lib, layer, options, shape, compiled) for lib in (torch, tg))
        assert not difference(theirs, ours)


OPTIMIZERS = [
    ("SGD", "lr=.1,momentum=.9,weight_decay=.01"),
    ("SGD", "lr=T.tensor(.1),nesterov=True,momentum=.5"),
    ("Adam", "lr=.1,amsgrad=True"),
    ("Adam", "betas=(T.tensor(.8),T.tensor(.9))"),
    ("AdamW", "lr=T.tensor(.1)"),
    ("RMSprop", "lr=.1,momentum=.9,centered=True"),
    ("Adadelta", "lr=.5"),
    ("Adagrad", "lr=.1,lr_decay=.1"),
    ("ASGD", "lr=.1,t0=2"),
    ("Rprop", "lr=.1"),
    ("NAdam", "lr=.1"),
    ("RAdam", "lr=.1"),
    ("Adamax", "lr=.1"),
    ("LBFGS", "lr=.5,max_iter=3,history_size=2"),
]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_state_of_pytorchs_optimizer_continues_here(name: str, options: str, compiled: bool) -> None:
    """A state_dict of PyTorch's optimiser, with its tensors, is loaded and training goes on alike."""
    start = np.random.default_rng(0).standard_normal((3, 2))

    def made(lib: Any, values: Any) -> tuple[Any, Any, Any]:
        p = lib.tensor(values).requires_grad_()
        optimizer = eval(f"lib.optim.{name}([p], {options})", {"lib": lib, "p": p, "T": lib})

        def closure() -> Any:
            optimizer.zero_grad()
            loss = ((p - 1) ** 2 * weights(lib, p)).sum() + (p**4).sum()
            loss.backward()
            return loss

        return p, optimizer, closure

    p, theirs, closure = made(torch, start)
    for _ in range(3):
        theirs.step(closure)
    q, ours, mine = made(tg, p.detach().numpy().copy())
    ours.load_state_dict(theirs.state_dict())
    step = (lambda: ours.step(mine)) if not compiled else tg.compile(lambda: ours.step(mine).detach())
    for _ in range(3):
        theirs.step(closure)
        step()
    np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=1e-5)
    assert repr(ours) == repr(theirs)
