"""What a tensor says of itself: shape, dtype, strides, memory. The part of `Tensor` that computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..ir.dtypes import DType
from ..ir.errors import DTypeError, SizeError, TraceError
from ..ir.types import normalize_axis
from .meta import CPU, Operators, Size, View, device
from .strides import Layout, is_row_major, layout_of
from .values import Storage, TracedValue

if TYPE_CHECKING:
    from ..runtime.buffers import Buffer


class Description(Operators):
    """Base of `Tensor`, which has the storage and the view."""

    __slots__ = ()

    if TYPE_CHECKING:
        _storage: Storage
        _view: View | None

        def _value(self) -> TracedValue: ...
        def _buffer(self) -> Buffer: ...
        def _memory(self) -> Buffer: ...
        def item(self) -> Any: ...

    @property
    def shape(self) -> Size:
        return tuple.__new__(Size, self._value().type.shape)

    @property
    def dtype(self) -> DType:
        return self._storage.value.type.dtype

    @property
    def device(self) -> device:
        name = self._storage.value.type.device
        return CPU if name is None else device(name)

    @property
    def ndim(self) -> int:
        return len(self._value().type.shape)

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self._value().type.shape)

    def numel(self) -> int:
        """Number of elements."""
        return self._value().type.numel

    nelement = numel
    ndimension = dim

    def is_signed(self) -> bool:
        """Whether elements can be negative."""
        return self.dtype.is_signed

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self._memory().ptr + self.storage_offset() * self.dtype.itemsize

    def get_device(self) -> int:
        """The number of the CUDA device; -1 on the CPU."""
        name = self._storage.value.type.device
        return -1 if name is None else int(name.partition(":")[2])

    def size(self, dim: int | None = None) -> Any:
        """The shape, or its extent along `dim`."""
        shape = self._value().type.shape
        return tuple.__new__(Size, shape) if dim is None else shape[normalize_axis(dim, len(shape))]

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self._value().type.nbytes

    def stride(self, dim: int | None = None) -> Any:
        """Strides of this view in the memory of its base, in elements."""
        strides = self._layout()[1]
        return strides if dim is None else strides[normalize_axis(dim, len(strides))]

    def storage_offset(self) -> int:
        """Where this view starts in the memory of its base, in elements."""
        return self._layout()[2]

    def is_contiguous(self, memory_format: Any = None) -> bool:
        """Whether the elements lie in row-major order, without gaps."""
        return self._view is None or is_row_major(*self._layout()[:2])

    def _layout(self) -> Layout:
        return layout_of(self._storage.value.type.shape, self._view)

    def is_floating_point(self) -> bool:
        return self.dtype.kind == "f"

    def is_complex(self) -> bool:
        return False

    @property
    def is_cuda(self) -> bool:
        return self._storage.value.type.device is not None

    @property
    def _version(self) -> int:
        """Number of in-place writes to the storage."""
        return self._storage.version

    def _is_view(self) -> bool:
        return self._view is not None

    def __len__(self) -> int:
        shape = self._value().type.shape
        if not shape:
            raise DTypeError("len() of a 0-d tensor: it has no dimension; use numel()")
        return shape[0]

    def __contains__(self, element: Any) -> bool:
        if not isinstance(element, (Description, int, float)) and not hasattr(element, "dtype"):
            raise DTypeError(
                f"`in` a tensor: expected a number or a tensor, got {type(element).__name__}: {element!r:.60}"
            )
        found = self == element
        return bool(found.any()) if isinstance(found, type(self)) or hasattr(found, "any") else bool(found)

    def __bool__(self) -> bool:
        n = self.numel()
        if n != 1:
            raise TraceError(
                f"the truth value of a tensor of type {self._value().type} is ambiguous; use .any() or .all()"
            )
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.__number())

    def __float__(self) -> float:
        return float(self.__number())

    def __number(self) -> Any:
        if self.numel() != 1:  # a ValueError here, a RuntimeError of item(), as in PyTorch
            raise SizeError(f"a tensor of type {self._value().type} has {self.numel()} elements, not one")
        return self.item()

    def __index__(self) -> int:
        if self.dtype.kind not in "biu" or self.numel() != 1:
            raise DTypeError(f"only integer tensors of one element can be an index, not {self._value().type}")
        return int(self.item())

    def __hash__(self) -> int:
        return id(self)
