"""Two gloo processes for tests of multi-GPU code, as Lightning expects to find them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

TRAINER = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
DDP = {**TRAINER, "devices": 2, "strategy": "ddp"}
PRELOADED = ["torch", "pytorch_lightning", "lightning.pytorch", "torchvision", "timm", "visynth.lightning_modules.gans"]


def preloaded() -> Any:
    """Processes are forked from one that has imported all this and done nothing else: an import takes ten seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_ranks(worker: Callable[..., None], *arguments: Any, seconds: float = 150) -> None:
    """Call ``worker(rank, *arguments)`` in two processes and wait for both to end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = preloaded()
    environment = dict(os.environ)
    ranks = [context.Process(target=_start, args=(worker, rank, port, environment, arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]


def _start(
    worker: Callable[..., None], rank: int, port: int, environment: dict[str, str], arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()  # the server's own is that of its start
    os.environ |= environment | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "RANK": str(rank),
    }
    worker(rank, *arguments)
