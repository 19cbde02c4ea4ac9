"""`tracegrad.utils.data`: datasets, samplers and the `DataLoader`, under PyTorch's names."""

from typing import TYPE_CHECKING

from ...ir.late import late as _late
from ...tracer.arguments import check_names as _check_names

if TYPE_CHECKING:
    from .collate import default_collate, default_collate_fn_map, default_convert
    from .dataset import (
        ChainDataset,
        ConcatDataset,
        Dataset,
        IterableDataset,
        StackDataset,
        Subset,
        TensorDataset,
        random_split,
    )
    from .fetch import WorkerInfo, get_worker_info
    from .loader import DataLoader
    from .sampler import (
        BatchSampler,
        RandomSampler,
        Sampler,
        SequentialSampler,
        SubsetRandomSampler,
        WeightedRandomSampler,
    )
else:
    __getattr__, __dir__ = _late(
        globals(),
        {
            ".collate": "default_collate default_collate_fn_map default_convert",
            ".dataset": """
                ChainDataset ConcatDataset Dataset IterableDataset StackDataset Subset TensorDataset
                random_split""",
            ".fetch": "WorkerInfo get_worker_info",
            ".loader": "DataLoader",
            ".sampler": """
                BatchSampler RandomSampler Sampler SequentialSampler SubsetRandomSampler
                WeightedRandomSampler""",
        },
        lambda name: _check_names(globals(), [name]),
    )

__all__ = [
    "BatchSampler", "ChainDataset", "ConcatDataset", "DataLoader", "Dataset", "IterableDataset",
    "RandomSampler", "Sampler", "SequentialSampler", "StackDataset", "Subset", "SubsetRandomSampler",
    "TensorDataset", "WeightedRandomSampler", "WorkerInfo", "default_collate", "default_collate_fn_map",
    "default_convert", "get_worker_info", "random_split",
]  # fmt: skip
