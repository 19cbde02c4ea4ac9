"""All workloads, by name, in the order of the table."""

from __future__ import annotations

from ..record import Workload
from .convnets import CONVNETS
from .kernels import KERNELS
from .nets import NETS
from .others import OTHERS
from .recurrent import RECURRENT
from .transformer import TRANSFORMERS
from .vision import VISION

_ALL = (*NETS, *CONVNETS, *RECURRENT, *TRANSFORMERS, *KERNELS, *VISION, *OTHERS)
WORKLOADS: dict[str, Workload] = {w.name: w for w in _ALL}
