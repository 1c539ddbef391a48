"""Where the networks run, and under what state of torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def resolve(device: str) -> torch.device:
    """``"auto"`` (a CUDA device if there is one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device == "auto":
        return torch.device(found[1] if len(found) > 1 else "cpu")
    name = "cuda:0" if device == "cuda" else device
    if name not in found:
        raise ValueError(f"device {device!r} not available; found: {', '.join(found)}")
    return torch.device(name)


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off, whatever the caller has set; a device out of memory becomes one clear error.

    In a forked child torch gets one thread: the threads of the parent's pool (GNU OpenMP) do not exist there, and the first
    parallel operation would wait for them for ever.
    """
    threads = torch.get_num_threads()
    if _forked and threads > 1:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise RuntimeError(
            "the device ran out of memory; try a smaller batch_size or block_size, or device='cpu'. Nothing was written."
        ) from error
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
