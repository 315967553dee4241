"""One site of a federated training: it takes weights, trains a little on its own images, and gives back an update.

An answer is a function of (weights, round, the site's data): optimiser, buffers and random numbers begin anew in every round, so
that a site may be restarted at any time. What leaves it is listed at :meth:`Site.answer`.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, raise_all
from visynth.core.quiet import quiet_lightning
from visynth.federated.options import FederatedOptions
from visynth.federated.steps import GradientWalk
from visynth.federated.updates import Tensors, check_alike, clipped, length, packed, unpacked

SERVER = "the server"
COUNTS = ("images_seen", "stepped_at")  # buffers that say where the stream stands


class Site:
    """A site with its data and the module that everybody trains.

    Args:
        name: of the site, one of ``options.sites``.
        module: the LightningModule, as the server has it.
        datamodule: the site's own data.
        options: of the federated training, as the server has them.
        trainer: arguments of the site's Trainer: accelerator, precision, gradient_clip_val.
        agreed: what must be the same everywhere, in plain values; compared with the server's.

    Example:
        >>> options = FederatedOptions(sites={"a": {}, "b": {}})
        >>> Site("c", None, None, options)
        Traceback (most recent call last):
        visynth.core.errors.UsageError: site 'c' is not one of 'a', 'b'.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        datamodule: Any,
        options: FederatedOptions,
        trainer: dict[str, Any] | None = None,
        agreed: dict[str, Any] | None = None,
    ) -> None:
        if name not in options.sites:
            raise UsageError(f"site {name!r} is not one of {', '.join(map(repr, options.sites))}.")
        self.name, self.module, self.datamodule, self.options = name, module, datamodule, options
        self.trainer, self.agreed = dict(trainer or {}), dict(agreed or {})
        self.untrained: dict[str, Tensor] | None = None
        if hasattr(datamodule, "join_federation"):
            datamodule.join_federation()

    def answer(self, message: bytes) -> bytes:
        """Train for one round.

        Args:
            message: the server's: weights, the round, where its places in the stream begin, what was agreed.

        Returns:
            The update, cut to ``max_update_norm``; with it the site's name and the round, and, without differential privacy, the
            mean loss and the update's length before the cut; the number of training images where sites count by it; images per
            class only where ``share_counts`` is set. Nothing else leaves the site.

        Raises:
            DataError: weights of another network; other facts of the data; what was agreed differs here.
            Diverged: the loss or a gradient left the finite numbers.
        """
        weights, task = unpacked(message, SERVER)
        self._check_agreed(task["agreed"])
        local = _LocalTraining(self, weights, task)
        with quiet_lightning(), seeded(seeding.derive("federated", self.name, int(task["round"]))):
            trainer = pytorch_lightning.Trainer(
                **{
                    "max_epochs": -1, "max_steps": self.options.local_steps, "logger": False, "enable_checkpointing": False,
                    "enable_progress_bar": False, "enable_model_summary": False, "devices": 1, "limit_val_batches": 0,
                    "num_sanity_val_steps": 0, "callbacks": [local], **self.trainer,
                }
            )  # fmt: skip
            trainer.fit(self.module, self.datamodule)
        update = local.update()
        return packed(clipped(update, self.options.max_update_norm), **self._facts(task, update, local))

    def _facts(self, task: dict[str, Any], update: Tensors, local: _LocalTraining) -> dict[str, Any]:
        """What the answer says beside the update."""
        facts: dict[str, Any] = {"site": self.name, "round": task["round"]}
        if self.options.privacy is not None:
            return facts
        facts |= {"loss": sum(local.losses) / len(local.losses), "length": length(update)}
        if self.options.weights == "images":
            facts["images"] = local.images
        if self.options.share_counts:
            facts["counts"] = self._counts()
        return facts

    def _counts(self) -> dict[str, int]:
        if not hasattr(self.datamodule, "counts_here"):
            raise UsageError(
                f"site {self.name}: share_counts needs GeneratorData, which knows the images of each class."
            )
        return dict(self.datamodule.counts_here)

    def _check_agreed(self, agreed: dict[str, Any]) -> None:
        keys = sorted({*agreed, *self.agreed})
        differ = [
            f"{key}: {agreed.get(key)!r} at the server, {self.agreed.get(key)!r} here" for key in keys
            if agreed.get(key) != self.agreed.get(key)
        ]  # fmt: skip
        raise_all(f"what site {self.name} shares with the server", differ, DataError)


class _LocalTraining(pytorch_lightning.Callback):
    """Takes the server's weights at the start of a fit, and what it did with them at its end."""

    def __init__(self, site: Site, weights: Tensors, task: dict[str, Any]) -> None:
        self.site, self.weights, self.task = site, weights, task
        self.losses: list[float] = []
        self.images = 0
        self.walk: GradientWalk | None = None
        self.handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        self._update: Tensors | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.site.options.algorithm == "fedopt":
            pl_module.configure_optimizers = lambda: self._walk(pl_module)

    def _walk(self, pl_module: Any) -> GradientWalk:
        self.walk = GradientWalk(trained(pl_module).values(), self.site.options.local_lr)
        return self.walk

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.lr_scheduler_configs:
            raise UsageError(
                "fedavg begins the sites' optimisers anew in every round, and a schedule of the learning rate with them: take "
                "algorithm: fedopt, whose schedule runs at the server, or no schedule."
            )
        facts = getattr(self.site.datamodule, "facts", None)
        here = facts.to_json() if facts is not None else {}
        differ = [
            f"{name}: {value!r} at the server, {here.get(name)!r} here" for name, value in (self.task["facts"] or {}).items()
            if here and here.get(name) != value
        ]  # fmt: skip
        raise_all(f"what the data of site {self.site.name} are", differ, DataError)
        self._begin_anew(pl_module)
        parameters = trained(pl_module)
        check_alike(self.weights, {name: p.detach().cpu() for name, p in parameters.items()}, SERVER)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[name])
        place = self.site.options.names.index(self.site.name) * self.task["images"] + self.task["first"]
        for name in COUNTS:
            if hasattr(pl_module, name):
                getattr(pl_module, name).fill_(place)

    def _begin_anew(self, pl_module: Any) -> None:
        """What is not trained is as it was built, in every round; and as the server built it."""
        site, now = self.site, untrained(pl_module)
        if site.untrained is None:
            site.untrained = {name: tensor.detach().clone() for name, tensor in now.items()}
            here, there = digest(site.untrained), self.task.get("untrained")
            if there is not None and there != here:
                raise DataError(
                    f"site {site.name}: frozen weights or buffers are others than the server's ({there[:16]} there, {here[:16]} here): "
                    "make them of a seed that is among the module's arguments."
                )
        with torch.no_grad():
            for name, tensor in now.items():
                tensor.copy_(site.untrained[name])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Lightning has just taken SIGTERM over: it is the business of the training around this one, after the round.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)
        loader = trainer.train_dataloader
        if self.site.options.weights == "images":
            self.images = int(loader.rows if hasattr(loader, "rows") else len(loader.dataset))
        sampler, steps = getattr(loader, "sampler", None), self.site.options.local_steps
        if isinstance(sampler, SequentialSampler) and len(loader) > steps:
            raise UsageError(
                f"site {self.site.name}: the training loader has {len(loader)} batches in one order, of which each round would meet the "
                f"first {steps} alone: shuffle it."
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        parameters = trained(pl_module)
        if self.walk is not None:
            sums = self.walk.sums
            self._update = {name: sums[id(p)].cpu() / self.site.options.local_steps for name, p in parameters.items()}
        else:
            self._update = {name: self.weights[name] - p.detach().cpu() for name, p in parameters.items()}

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        vars(pl_module).pop("configure_optimizers", None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        vars(pl_module).pop("configure_optimizers", None)

    def update(self) -> Tensors:
        """The mean gradient of the walk, or the way from the new weights to the old ones.

        Raises:
            DataError: the data ended before the round's steps.
        """
        if self._update is None or len(self.losses) < self.site.options.local_steps:
            raise DataError(
                f"site {self.site.name} made {len(self.losses)} of {self.site.options.local_steps} local steps: it has no more data."
            )
        return self._update


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training moves, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def untrained(module: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters and buffers, by name, but for the counts that a round sets."""
    frozen: dict[str, Tensor] = {name: p.data for name, p in module.named_parameters() if not p.requires_grad}
    return {**frozen, **{name: b for name, b in module.named_buffers() if name not in COUNTS}}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values."""
    whole = sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        whole.update(values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return whole.hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global random numbers of torch, numpy and Python are functions of a seed within the block, and as before after it."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
