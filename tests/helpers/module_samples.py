"""torch's own samples of its norms, from its test suite: python module_samples.py FILE writes them.

In a process of its own: importing torch's test suite changes flags of torch that other tests need.
"""

import sys
from typing import Any

import torch
from torch import nn

CLASSES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm),
)


def samples() -> list[dict[str, Any]]:
    """Each sample: the class, the arguments it is built with, its input, and what it is about."""
    # The samples have no public name. The law that reads them runs with the lowest and the newest version of torch.
    from torch.testing._internal.common_modules import module_db

    found = []
    for info in module_db:
        if info.module_cls not in CLASSES:
            continue
        for dtype in (torch.float32, torch.float64):
            given = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
            found += [
                {
                    "theirs": info.module_cls,
                    "args": list(sample.constructor_input.args),
                    "kwargs": sample.constructor_input.kwargs,
                    "x": sample.forward_input.args[0],
                    "about": sample.desc,
                }
                for sample in given
            ]
    return found


if __name__ == "__main__":
    torch.save(samples(), sys.argv[1])
