"""A GPU that is emulated: the functions of NVIDIA's driver that runtime/cuda_driver.py calls, under the names
and with the arguments of `cuda.bindings.driver`, over the CPU's memory.

    TRACEGRAD_CUDA=emulate         one device, sm_80, on any machine with g++
    TRACEGRAD_CUDA_MEMORY=<bytes>  its size; a gibibyte if not set
    TRACEGRAD_CUDA_DEVICES=<n>     how many there are; one if not set

The emitted text is built by g++ with emulate.h, so that all that uses a GPU can be run and tested
without one, slowly and strictly (cuda_emulated_driver.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..backends.cuda.emit import CudaUnit
from ..backends.cuda.emulate import available, build
from . import cuda_driver as low
from .cuda_emulated_driver import EmulatedDriver

#: what `cuModuleLoadData` takes here: the path of a shared library
_PACKED = """
#include <type_traits>
#include <utility>

// Launches with arguments as the driver's cuLaunchKernel takes them: an array of their addresses.
template <typename... A, size_t... I>
void launch_packed(const char* name, void (*kernel)(A...), const unsigned* sizes, void** given,
                   std::index_sequence<I...>) {
  emulated::start(name, kernel, dim3(sizes[0], sizes[1], sizes[2]), dim3(sizes[3], sizes[4], sizes[5]),
                  *static_cast<std::remove_cv_t<A>*>(given[I])...);
}
template <typename... A>
void launch_packed(const char* name, void (*kernel)(A...), const unsigned* sizes, void** given) {
  launch_packed(name, kernel, sizes, given, std::index_sequence_for<A...>{});
}

// The sizes of a kernel's parameters in bytes; gives how many there are.
template <typename... A>
int list_parameters(void (*)(A...), int* sizes) {
  int n = 0;
  (..., (sizes[n++] = sizeof(A)));
  return n;
}
"""
_DEFAULT_BYTES = 1 << 30


def load() -> tuple[Any, str | None]:
    """The driver, or None and what is missing."""
    if not available():
        return None, "emulating one takes g++, which is not installed"
    numbers = []
    for name, default, what in (
        ("TRACEGRAD_CUDA_MEMORY", _DEFAULT_BYTES, "a number of bytes"),
        ("TRACEGRAD_CUDA_DEVICES", 1, "how many devices there are"),
    ):
        given = os.environ.get(name, "")
        if given and not given.isdecimal():
            return None, f"{name} must be {what}, not {given!r}"
        numbers.append(int(given) if given else default)
    return EmulatedDriver(*numbers), None


#: what `emulated` puts in place, one for all its uses
_KEPT: dict[tuple[Any, ...], low.State] = {}


@contextmanager
def emulated(devices: int = 1, capability: tuple[int, int] = (8, 0)) -> Iterator[EmulatedDriver]:
    """Inside, emulated devices are the only ones, whatever the environment says; for tests. Tensors on them
    must not be used outside.

    Raises CudaError without g++.
    """
    state = _KEPT.get((devices, capability))
    if state is None:
        state = low.State()
        state.driver, state.reason = load()
        if state.driver is None:
            raise low.CudaError(f"no GPU can be used: {state.reason}")
        state.driver = EmulatedDriver(state.driver.total, devices, capability)
        state.count = devices
        _KEPT[devices, capability] = state
    before = low.swap(state)
    try:
        yield state.driver
    finally:
        low.swap(before)


def image(unit: CudaUnit) -> bytes:
    """What `cuModuleLoadData` takes of a unit: the path of a library in which every kernel can be launched
    by its name.

    Raises EmulationError if g++ refuses the text.
    """
    return image_of(unit.text, [f.name for f in unit.functions])


def image_of(text: str, kernels: Sequence[str]) -> bytes:
    """The same of a text with kernels of these names."""
    entries = [
        f'extern "C" void packed_{name}(const unsigned* sizes, void** given) {{\n'
        f'  launch_packed("{name}", {name}, sizes, given);\n}}\n'
        f'extern "C" int parameters_{name}(int* sizes) {{ return list_parameters({name}, sizes); }}\n'
        for name in kernels
    ]
    return str(build(text + _PACKED + "\n".join(entries))).encode()
