"""All workloads, by name, in the order of the table."""

from __future__ import annotations

from ..record import Workload
from .convnets import CONVNETS
from .kernels import KERNELS
from .nets import NETS
from .recurrent import RECURRENT
from .transformer import TRANSFORMERS

WORKLOADS: dict[str, Workload] = {w.name: w for w in (*NETS, *CONVNETS, *RECURRENT, *TRANSFORMERS, *KERNELS)}
