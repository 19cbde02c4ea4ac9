"""Saving and loading: structures, safetensors files, shared memory, damaged files."""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import pathlib
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from hypothesis import given
from hypothesis import strategies as st


def again(obj: Any) -> Any:
    file = io.BytesIO()
    tg.save(obj, file)
    file.seek(0)
    return tg.load(file)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tg.Tensor):
        x, y = (t.detach().numpy() for t in (a, b))
        return type(b) is tg.Tensor and a.dtype is b.dtype and x.shape == y.shape and np.array_equal(x, y)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def header(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.sampled_from(["float32", "bfloat16", "int64", "bool", "uint8"]).map(
        lambda d: tg.tensor([[1, 0, 1]]).to(getattr(tg, d))
    ),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=4), st.integers(-5, 5), st.booleans(), st.none())
TREES = st.recursive(
    LEAVES,
    lambda t: st.one_of(
        st.lists(t, max_size=3), st.lists(t, max_size=3).map(tuple), st.dictionaries(KEYS, t, max_size=3)
    ),
    max_leaves=12,
)


@given(TREES)
def test_any_structure_comes_back(tree: Any) -> None:
    assert same(tree, again(tree))


def test_other_types() -> None:
    class Color(enum.IntEnum):
        RED = 3

    obj = {
        "set": {1, 2}, "frozen": frozenset("a"), "dtype": tg.float16, "size": tg.ones(2, 3).shape,
        "device": tg.device("cpu"), "complex": 1 + 2j, "array": np.arange(3, dtype=np.int16),
        "red": Color.RED, "scalar": np.float32(1.5), "empty": tg.zeros(0, 4), "zero": tg.tensor(2.5),
        "ordered": OrderedDict(b=1),
    }  # fmt: skip
    back = again(obj)
    assert {k: v for k, v in back.items() if k not in ("array", "empty", "zero")} == {
        k: v for k, v in obj.items() if k not in ("array", "empty", "zero")
    }
    assert same([obj[k] for k in ("array", "empty", "zero")], [back[k] for k in ("array", "empty", "zero")])
    assert back["dtype"] is tg.float16 and type(back["size"]) is type(obj["size"])
    assert type(back["ordered"]) is OrderedDict and type(back["scalar"]) is np.float32
    assert again(tg.tensor([1.0])).tolist() == [1.0]


def test_checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A program's first run may be interpreted, which can differ from compiled code in the last digit.
    monkeypatch.setenv("TRACEGRAD_LAZY", "compile")

    def made() -> tuple[Any, Any]:
        tg.manual_seed(0)
        model = tg.nn.Sequential(tg.nn.Linear(3, 4), tg.nn.BatchNorm1d(4), tg.nn.Linear(4, 2))
        return model, tg.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.9))

    x = tg.randn(5, 3)

    def step(model: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        (model(x) ** 2).sum().backward()
        optimizer.step()

    model, optimizer = made()
    step(model, optimizer)
    path = tmp_path / "last.ckpt"
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": tg.get_rng_state()}
    tg.save({**state, "epoch": 3, "loss": float("nan")}, path)
    for _ in range(2):
        step(model, optimizer)
    back = tg.load(str(path), map_location="cpu")
    other, second = made()
    assert back["epoch"] == 3 and back["loss"] != back["loss"]
    other.load_state_dict(back["model"])
    second.load_state_dict(back["optimizer"])
    tg.set_rng_state(back["rng"])
    assert back["model"]._metadata["1"]["version"] == 2
    assert second.param_groups[0]["betas"] == (0.8, 0.9) and set(back["optimizer"]["state"]) == set(range(6))
    for _ in range(2):
        step(other, second)
    for a, b in zip(model.parameters(), other.parameters()):
        assert a.tolist() == b.tolist()


def test_a_state_dict_is_a_plain_safetensors_file(tmp_path: pathlib.Path) -> None:
    model = tg.nn.Linear(2, 3)
    path = tmp_path / "model.safetensors"
    tg.save(model.state_dict(), path)
    data = path.read_bytes()
    head = header(data)
    assert set(head) == {"__metadata__", "weight", "bias"} and head["weight"]["shape"] == [3, 2]
    assert head["__metadata__"]["format"] == "pt"
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 8 == 0
    a, b = head["weight"]["data_offsets"]
    assert data[start + a : start + b] == model.weight.detach().numpy().tobytes()
    reference = pytest.importorskip("safetensors.numpy")
    assert (reference.load_file(path)["bias"] == model.bias.detach().numpy()).all()
    reference.save_file({"w": np.arange(3.0), "s": np.array(True)}, tmp_path / "other")
    back = tg.load(tmp_path / "other")
    assert back["w"].tolist() == [0, 1, 2] and back["s"].item() is True and back["w"].dtype is tg.float64


def test_shared_memory_is_shared_again() -> None:
    w = tg.randn(4)
    w.requires_grad_()
    nested = again({"x": [w, w.detach()], "tail": w.detach()[1:]})
    a, b = nested["x"]
    with tg.no_grad():
        a[0] = 9.0
    assert a.requires_grad and b[0].item() == 9.0 and nested["tail"].tolist() == w[1:].tolist()
    file = io.BytesIO()
    tg.save({"a": w, "b": w.detach()}, file)
    assert {"a", "b"} <= set(header(file.getvalue()))  # other readers find both names
    file.seek(0)
    flat = tg.load(file)
    flat["b"][1] = 5.0
    assert flat["a"][1].item() == 5.0

    class Tied(tg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = tg.nn.Linear(2, 2, bias=False), tg.nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight

    state = again(Tied().state_dict())
    Tied().load_state_dict(state)
    assert list(state) == ["one.weight", "two.weight"]


def test_names_that_meet_are_told_apart() -> None:
    obj = {"a": {"b": tg.ones(1)}, "a.b": tg.zeros(1), 1: tg.ones(2), "1": tg.zeros(2)}
    assert same(obj, again(obj))


def test_files_are_replaced_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "f"
    tg.save({"a": tg.ones(3)}, path)
    os.chmod(path, 0o640)
    before = path.read_bytes()
    with pytest.raises(tg.TracegradError, match=r"can't save object at obj\['b'\]"):
        tg.save({"a": tg.zeros(3), "b": object()}, path)
    assert path.read_bytes() == before

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        tg.save(tg.ones(3), Full())
    tg.save({"a": tg.zeros(3)}, path)
    assert path.stat().st_mode & 0o777 == 0o640 and [p.name for p in tmp_path.iterdir()] == ["f"]
    with pytest.raises(FileNotFoundError, match="no directory"):
        tg.save(1, tmp_path / "missing" / "f")
    with pytest.raises(FileNotFoundError):
        tg.load(tmp_path / "nothing")


def test_errors() -> None:
    loop: list[Any] = []
    loop.append(loop)
    bad = [(loop, "contains itself"), ([lambda: 1], "can't save function"), (np.array(["x"]), "<U1")]
    for obj, text in bad:
        with pytest.raises(tg.TracegradError, match=text):
            tg.save(obj, io.BytesIO())
    with pytest.raises(tg.TracegradError, match="'cuda'"):
        tg.load(io.BytesIO(), map_location="cuda")
    with pytest.raises(tg.TracegradError, match="unpickled"):
        tg.load(io.BytesIO(), pickle_module=json)
    with pytest.raises(tg.TracegradError, match="a path or a binary file"):
        tg.load(3)
    with pytest.raises(tg.TracegradError, match="'rb'"):
        tg.load(io.StringIO("x"))


def test_damaged_files_are_errors() -> None:
    file = io.BytesIO()
    tg.save({"a": tg.arange(5), "b": tg.ones(3), "n": [1, "x"]}, file)
    data = file.getvalue()
    rng = np.random.default_rng(0)
    for n in [*range(0, 24), *rng.integers(24, len(data), 40)]:
        with pytest.raises(tg.TracegradError, match=r"cut off|damaged|no safetensors|ended"):
            tg.load(io.BytesIO(data[:n]))
    for _ in range(300):
        broken = bytearray(data)
        for k in rng.integers(0, len(data), 3):
            broken[k] = rng.integers(256)
        with contextlib.suppress(tg.TracegradError):
            tg.load(io.BytesIO(bytes(broken)))

    def with_header(**changes: Any) -> bytes:
        head = header(data)
        head["a"].update(changes)
        text = json.dumps(head).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]

    for changes in (
        {"shape": [6]}, {"shape": [-5]}, {"dtype": "F8_E5M2"}, {"data_offsets": [0, 39]}, {"shape": [5.0]},
        {"data_offsets": [-8, 32]}, {"more": 1}, {"data_offsets": [8, 48]},
    ):  # fmt: skip
        with pytest.raises(tg.TracegradError):
            tg.load(io.BytesIO(with_header(**changes)))
    tg.load(io.BytesIO(with_header()))
    huge = (1 << 40).to_bytes(8, "little") + b"{}"
    with pytest.raises(tg.TracegradError, match="no safetensors"):
        tg.load(io.BytesIO(huge))


def test_pickles_are_refused_with_advice() -> None:
    for start in (b"PK\x03\x04" + bytes(100), b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9" + bytes(100)):
        with pytest.raises(tg.TracegradError, match=r"safetensors\.torch\.save_file"):
            tg.load(io.BytesIO(start))


# --- against PyTorch ---


@pytest.mark.peer
def test_weights_go_to_pytorch_and_back(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    st_torch = pytest.importorskip("safetensors.torch")
    x = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)

    def net(lib: Any) -> Any:
        n = lib.nn
        return n.ModuleDict({"rnn": n.LSTM(6, 5, 2), "norm": n.BatchNorm1d(3), "out": n.Linear(5, 2)})

    def run(lib: Any, m: Any) -> np.ndarray:
        out = m["out"](m["rnn"](m["norm"](lib.from_numpy(x)))[0])
        return out.detach().numpy()

    theirs, mine = net(torch), net(tg)
    st_torch.save_file(theirs.state_dict(), tmp_path / "theirs")
    mine.load_state_dict(tg.load(tmp_path / "theirs"))
    np.testing.assert_allclose(run(tg, mine), run(torch, theirs), rtol=2e-5, atol=2e-6)
    tg.save(net(tg).state_dict(), tmp_path / "mine")
    state = st_torch.load_file(tmp_path / "mine")
    theirs.load_state_dict(state)
    mine.load_state_dict(tg.load(tmp_path / "mine"))
    np.testing.assert_allclose(run(tg, mine.eval()), run(torch, theirs.eval()), rtol=2e-5, atol=2e-6)


@pytest.mark.peer
def test_pytorchs_own_files_are_refused(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    for k, new in enumerate((True, False)):
        torch.save({"a": torch.ones(2)}, tmp_path / str(k), _use_new_zipfile_serialization=new)
        with pytest.raises(tg.TracegradError, match="PyTorch's own format"):
            tg.load(tmp_path / str(k))
