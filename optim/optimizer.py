"""`Optimizer`: parameter groups, state, saving and loading, hooks. Update rules are in rule.py and its
subclasses; one's own optimiser derives from `Optimizer` and defines `step`, as in PyTorch."""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

from ..tracer.callers import warn
from ..tracer.conversions import from_outside
from ..tracer.devices import on_device
from ..tracer.library import ArgumentError, ArgumentTypeError, RemovableHandle, add_hook, device_name
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor, note_change
from .param_group import ParamGroup


class _Required:
    def __repr__(self) -> str:
        return "<required parameter>"


#: A default that every parameter group must give itself.
required = _Required()


def _own(value: Any) -> Any:
    """A copy of a saved hyper-parameter, in which tensors of other libraries are ours."""
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)([_own(v) for v in value])
    own: Any = from_outside(value)
    return own.detach().clone() if isinstance(own, Tensor) else deepcopy(value)


def _with_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def stepping(self: Any, *args: Any, **kwargs: Any) -> Any:
        for hook in list(self._step_pre_hooks.values()) if self._step_pre_hooks else ():
            made = hook(self, args, kwargs)
            if made is not None:
                if not (isinstance(made, tuple) and len(made) == 2):
                    raise ArgumentTypeError(
                        f"a step pre-hook must return None or (args, kwargs), got {made!r:.80}"
                    )
                args, kwargs = made
        out = step(self, *args, **kwargs)
        self._opt_called = True
        for hook in list(self._step_post_hooks.values()) if self._step_post_hooks else ():
            hook(self, args, kwargs)
        return out

    return stepping


class Optimizer:
    """Base of all optimisers.

    Args:
        params: tensors, pairs of name and tensor, or dicts `{"params": ..., "lr": ...}`, one per group.
        defaults: hyper-parameters for groups that don't give their own.

    Attributes:
        param_groups: dicts of hyper-parameters with their `params`.
        state: what is kept for each parameter.
    """

    _opt_called = False
    _hidden: tuple[str, ...] = ()  # state that is not saved

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step = _with_hooks(cls.__dict__["step"])

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._reset_hooks()
        self.defaults = defaults
        self.state: Any = defaultdict(dict)
        self.param_groups: list[Any] = []
        if isinstance(params, Tensor):
            raise ArgumentTypeError(
                f"{type(self).__name__}: params must be an iterable of tensors or dicts, got one tensor; "
                f"pass [tensor]"
            )
        groups = list(params)
        if not groups:
            raise ArgumentError(
                f"{type(self).__name__} got no parameters; pass model.parameters() of a model that has some"
            )
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)
        if STATE.trace is STATE.lazy:
            STATE.lazy.flush()  # what made the parameters is not part of the first step

    def _reset_hooks(self) -> None:
        for name in (
            "_step_pre_hooks", "_step_post_hooks", "_state_dict_pre_hooks", "_state_dict_post_hooks",
            "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
        ):  # fmt: skip
            setattr(self, name, OrderedDict())
        self._generation = 0
        self._formula = object()  # stands for this optimiser's formula where recorded updates are kept

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset_hooks()
        self.__dict__.update(state)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines += [""] * (i > 0)
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])

    # --- parameters -----------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with hyper-parameters of their own.

        Args:
            param_group: `{"params": tensors, ...}`; what it does not give is taken from the defaults.

        Raises:
            TracegradError: something other than leaf tensors, one that is in a group already, or a missing
                hyper-parameter. The optimiser is then as it was.
        """
        who = type(self).__name__
        if not isinstance(param_group, dict):
            raise ArgumentTypeError(
                f"{who}: a parameter group must be a dict such as {{'params': tensors, 'lr': 0.1}}, "
                f"got {type(param_group).__name__}"
            )
        if "params" not in param_group:
            raise ArgumentError(
                f"{who}: a parameter group needs 'params'; this one has {sorted(param_group)}"
            )
        group = ParamGroup()
        given = param_group["params"]
        if isinstance(given, set):
            raise ArgumentTypeError(f"{who}: parameters need an order, which a set has not; pass a list")
        if not isinstance(given, (Tensor, Iterable)):
            raise ArgumentTypeError(
                f"{who}: 'params' must be a tensor or several, got {type(given).__name__}"
            )
        params: list[Any] = [given] if isinstance(given, Tensor) else list(given)
        names = [p[0] for p in params if isinstance(p, tuple)]
        if names:
            if len(names) != len(params):
                raise ArgumentError(f"{who}: either all parameters have names or none has")
            params = [p[1] for p in params]
        for p in params:
            if not isinstance(p, Tensor):
                raise ArgumentTypeError(
                    f"{who}: parameters must be tensors, got {type(p).__name__}: {p!r:.60}"
                )
            if not p.is_leaf:
                raise ArgumentError(
                    f"{who}: can't optimise a tensor of type {p._value().type} that is computed from others, "
                    f"only "
                    f"leaves; optimise what it is computed from, or use detach().requires_grad_()"
                )
        known = {id(p) for g in self.param_groups for p in g["params"]}
        if any(id(p) in known for p in params):
            raise ArgumentError(f"{who}: a parameter appears in more than one group; give each to one")
        if len({id(p) for p in params}) != len(params):
            warn(f"{who}: a parameter appears twice in a group and will be updated twice")
        dict.update(group, param_group, params=params)
        if names:
            dict.__setitem__(group, "param_names", names)
        for name, default in self.defaults.items():
            if name not in group:
                if default is required:
                    raise ArgumentError(f"{who}: a parameter group must give {name!r}")
                dict.__setitem__(group, name, default)
        self._check_group(group)
        self.param_groups.append(group)
        self._generation += 1
        note_change()

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises if hyper-parameters of a group make no sense."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients, or sets them to zero."""
        trace = STATE.trace
        if set_to_none and trace is STATE.lazy:  # where assigning `.grad` has no other effect
            for group in self.param_groups:
                for p in group["params"]:
                    p._grad = None
            return
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad = p.grad.detach()
                    p.grad.zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters from their gradients; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} has no step(); define it in the class")

    def _trace_state(self) -> tuple[Any, ...]:
        keys = [k for k in self.defaults if k not in ("foreach", "fused", "capturable", "differentiable")]
        return (self._generation, *[g.trace_state(keys) for g in self.param_groups])

    # --- hooks ----------------------------------------------------------------------------------------------

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls `hook(optimizer, args, kwargs)` before each step; it may return new (args, kwargs)."""
        return add_hook(self._step_pre_hooks, hook)  # type: ignore[attr-defined]

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls `hook(optimizer, args, kwargs)` after each step."""
        return add_hook(self._step_post_hooks, hook)  # type: ignore[attr-defined]

    def register_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Calls `hook(optimizer)` before saving."""
        return add_hook(self._state_dict_pre_hooks, hook, first=prepend)  # type: ignore[attr-defined]

    def register_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Calls `hook(optimizer, state_dict)` after saving; it may return another dict."""
        return add_hook(self._state_dict_post_hooks, hook, first=prepend)  # type: ignore[attr-defined]

    def register_load_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Calls `hook(optimizer, state_dict)` before loading; it may return another dict."""
        return add_hook(self._load_state_dict_pre_hooks, hook, first=prepend)  # type: ignore[attr-defined]

    def register_load_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Calls `hook(optimizer)` after loading."""
        return add_hook(self._load_state_dict_post_hooks, hook, first=prepend)  # type: ignore[attr-defined]

    # --- saving and loading ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """`{"state": {index: {...}}, "param_groups": [{..., "params": [indices]}]}`, in PyTorch's format.

        Tensors are the optimiser's own.
        """
        for hook in list(self._state_dict_pre_hooks.values()):  # type: ignore[attr-defined]
            hook(self)
        index: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                index.setdefault(id(p), len(index))
            packed = {k: v for k, v in group.items() if k != "params"}
            groups.append({**packed, "params": [index[id(p)] for p in group["params"]]})
        state = {
            index.get(id(k), k) if isinstance(k, Tensor) else k: {
                n: x for n, x in v.items() if n not in self._hidden
            }
            for k, v in self.state.items()
        }
        made: Any = {"state": state, "param_groups": groups}
        for hook in list(self._state_dict_post_hooks.values()):  # type: ignore[attr-defined]
            new = hook(self, made)
            made = made if new is None else new
        return made

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict()` gave, copied, and in the dtypes of the parameters.

        Raises:
            TracegradError: groups or parameters don't match in number, or state does not fit its parameter.
                The optimiser is then as it was.
        """
        who = type(self).__name__
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
            raise ArgumentTypeError(
                f"{who}.load_state_dict() takes a dict with 'state' and 'param_groups', got "
                + (
                    f"keys {sorted(map(str, state_dict))}"
                    if isinstance(state_dict, dict)
                    else type(state_dict).__name__
                )
            )
        loaded: Any = dict(state_dict)
        for hook in list(self._load_state_dict_pre_hooks.values()):  # type: ignore[attr-defined]
            new = hook(self, loaded)
            loaded = loaded if new is None else new
        mine, saved = self.param_groups, loaded["param_groups"]
        if len(mine) != len(saved):
            raise ArgumentError(
                f"{who}: the state has {len(saved)} parameter groups, the optimiser {len(mine)}"
            )
        for i, (a, b) in enumerate(zip(mine, saved)):
            if len(a["params"]) != len(b["params"]):
                raise ArgumentError(
                    f"{who}: group {i} has {len(b['params'])} parameters in the state, "
                    f"{len(a['params'])} in the optimiser"
                )
        param_of = {k: p for a, b in zip(mine, saved) for k, p in zip(b["params"], a["params"])}
        state: Any = defaultdict(dict)
        for key, entries in loaded["state"].items():
            p = param_of.get(key)
            if p is None:
                state[key] = deepcopy(entries)
            else:
                state[p] = self._loaded_state(p, key, entries)
        groups = []
        for a, b in zip(mine, saved):
            group = ParamGroup()
            given = {k: _own(v) for k, v in b.items() if k != "params"}
            dict.update(group, given, params=a["params"])
            if "param_names" in a and "param_names" not in group:
                dict.__setitem__(group, "param_names", a["param_names"])
            group.lifted = set(a.lifted) if isinstance(a, ParamGroup) else {"lr"}
            groups.append(group)
        self.__setstate__({**self.__dict__, **self._adopted(state, groups)})
        self._generation += 1
        note_change()
        for hook in list(self._load_state_dict_post_hooks.values()):  # type: ignore[attr-defined]
            hook(self)

    def _loaded_state(self, p: Tensor, key: Any, entries: Any) -> Any:
        if not isinstance(entries, dict):
            return deepcopy(entries)
        out: dict[str, Any] = {}
        for name, value in entries.items():
            value = from_outside(value)
            if isinstance(value, Tensor):
                if value.dim() and tuple(value.shape) != tuple(p.shape):
                    raise ArgumentError(
                        f"{type(self).__name__}: state {name!r} of parameter {key} has shape "
                        f"{list(value.shape)}, "
                        f"the parameter {list(p.shape)}"
                    )
                value = on_device(value.detach().clone(), device_name(p))
                if name != "step" and p.dtype.kind == "f":
                    value = value.to(p.dtype)
            else:
                value = deepcopy(value)
            out[name] = value
        return out

    def _adopted(self, state: Any, groups: list[Any]) -> dict[str, Any]:
        """Loaded state and groups as attributes; subclasses may rearrange them."""
        return {"state": state, "param_groups": groups}


__all__ = ["Optimizer", "required"]
