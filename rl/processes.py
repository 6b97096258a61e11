"""What the processes of a data-parallel run tell one another: values, and the sum of their gradients.

Gradients are summed here and not by DistributedDataParallel, whose hooks know one forward and one backward per step: a
micro-batch of trees has several of each, and a process may have none. Every process makes the same calls, whatever it
holds.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist


def leave_in_order() -> None:
    """Have this process close its process group before Python is torn down.

    Otherwise the group's threads are cut off when the interpreter ends, and now and then the process of a finished run
    aborts ("terminate called without an active exception"), which its launcher takes for a failed run.
    """
    atexit.unregister(_close_group)
    atexit.register(_close_group)


def _close_group() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def gathered(values: Sequence[Any]) -> list[Any]:
    """Lists of all processes, one after another in the order of their ranks, on every process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(values)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, list(values))
    return [value for of in every for value in of]


def sum_gradients(parameters: Sequence[torch.nn.Parameter], *, bucket_bytes: int = 256 << 20) -> None:
    """Make every parameter's gradient the sum over all processes.

    One that has no gradient anywhere keeps none, so that its optimizer state stays as it is.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    device = parameters[0].device
    have = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=device)
    dist.all_reduce(have, op=dist.ReduceOp.MAX)
    for bucket in _buckets([p for p, some in zip(parameters, have.tolist(), strict=True) if some], bucket_bytes):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        dist.all_reduce(flat)
        for p, part in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
            p.grad = part.view_as(p).clone()


def _buckets(parameters: Sequence[Any], bytes_each: int) -> Iterator[list[Any]]:
    """Parameters of one dtype together, up to so many bytes."""
    bucket: list[Any] = []
    size = 0
    for parameter in parameters:
        full = size + parameter.numel() * parameter.element_size() > bytes_each
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
