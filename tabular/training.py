"""Training of a table generator as a Lightning module: an endless stream of row batches, a schedule, an average.

Every random number of a step is a function of (seed, step), and a rank takes its share of the step's rows: a training that
goes on from a checkpoint, or runs on two processes, meets the same numbers.
"""

from __future__ import annotations

import copy
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pytorch_lightning
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.core.errors import Diverged, UsageError, raise_all
from visynth.core.progress import Progress, no_progress, time_left
from visynth.core.quiet import quiet_lightning
from visynth.privacy.dp import DifferentialPrivacy
from visynth.privacy.poisson import EmptyBatch, PoissonBatches
from visynth.tabular.base import Synthesizer
from visynth.tabular.fitted import Fitted
from visynth.tabular.private import PrivateTable
from visynth.tabular.schema import Table

Batch = dict[str, Tensor]
Arrays = dict[str, NDArray[Any]]
WARMUP = 0.1  # share of the steps in which the learning rate rises
TELL = 20.0  # seconds between lines of progress


class Stream(IterableDataset[Batch]):
    """Batches of a table from a step on, without end.

    Args:
        arrays: the encoded table, each ``[N, ...]``.
        module: says how many rows a batch has, what random numbers it needs, and which step is next.
    """

    def __init__(self, arrays: Arrays, module: GradientSteps) -> None:
        self.arrays, self.module = arrays, module
        self.rows = len(next(iter(arrays.values())))

    def __iter__(self) -> Iterator[Batch]:
        step = int(self.module.steps_done)
        size, seed = min(int(self.module.args.batch_size), self.rows), int(self.module.args.seed)
        rank, world = distributed.rank(), distributed.world_size()
        epoch, order = -1, np.zeros(0, np.int64)
        while True:
            generator = seeding.rng(seed, f"tabular/step/{step}")
            places = np.arange(step * size, (step + 1) * size)
            picked = np.empty(size, np.int64)
            for number in np.unique(places // self.rows):
                if number != epoch:
                    epoch, order = int(number), seeding.rng(seed, f"tabular/epoch/{number}").permutation(self.rows)
                own = places // self.rows == number
                picked[own] = order[places[own] % self.rows]
            picked, noise = self.module.batch(picked, generator)
            mine = slice(rank, None, world)
            batch = {name: torch.from_numpy(values[picked[mine]]) for name, values in self.arrays.items()}
            yield batch | {name: torch.from_numpy(np.ascontiguousarray(values[mine])) for name, values in noise.items()}
            step += 1


class StreamLoader(DataLoader[Batch]):
    """A loader of a table's stream, which a private training draws by chance instead."""

    dataset: Stream

    @property
    def rows(self) -> int:
        """Of the table."""
        return self.dataset.rows

    @property
    def expected(self) -> int:
        return min(int(self.dataset.module.args.batch_size), self.rows)

    def private(self, batches: PoissonBatches) -> StreamLoader:
        """The same rows, in batches of a Poisson sample."""
        return StreamLoader(PoissonStream(self.dataset.arrays, self.dataset.module, batches), batch_size=None)


class PoissonStream(Stream):
    """Batches of Poisson samples."""

    def __init__(self, arrays: Arrays, module: GradientSteps, batches: PoissonBatches) -> None:
        super().__init__(arrays, module)
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        first = self.batches.first()
        for step in range(first, first + len(self.batches)):
            places = self.batches.places(step)
            if not len(places):
                yield EmptyBatch()
                continue
            rows = self.batches.rows.index(places)
            own = {name: torch.from_numpy(values[rows]) for name, values in self.arrays.items()}
            yield own | self._noise(places)

    def _noise(self, places: NDArray[np.int64]) -> Batch:
        """Random numbers of each row from its own place: were they drawn for the batch, a row that is left out would change
        those of the others, and with them their gradients."""
        stream = f"tabular/private/{int(self.module.args.seed)}/{self.batches.key}"
        drawn = [self.module.noise(1, generator) for generator in seeding.rngs(places.tolist(), stream)]
        return {name: torch.from_numpy(np.concatenate([one[name] for one in drawn])) for name in drawn[0]}


class GradientSteps(pytorch_lightning.LightningModule):
    """What is trained by gradient steps on rows of arrays, for a number of steps. Subclasses write ``build`` and ``loss``.

    They call ``save_hyperparameters`` with ``steps``, ``batch_size``, ``lr``, ``ema`` and ``seed`` among their arguments.
    """

    network: ClassVar[str]
    steps_done: Tensor
    net: nn.Module
    average: nn.Module
    weight_decay = 0.01

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    # -- for authors -------------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """The network for the encoding."""

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch: a scalar."""
        raise NotImplementedError

    def noise(self, count: int, generator: np.random.Generator) -> Arrays:
        """Random numbers of a batch of ``count`` rows, each ``[count, ...]``."""
        return {}

    def batch(self, rows: NDArray[np.int64], generator: np.random.Generator) -> tuple[NDArray[np.int64], Arrays]:
        """Rows of a batch and its random numbers; a model may choose other rows."""
        return rows, self.noise(len(rows), generator)

    # -- fitting -----------------------------------------------------------------------------------------------------

    @property
    def args(self) -> Any:
        return self.hparams

    @quiet_lightning()
    def train_on(self, arrays: Arrays, progress: Progress, **training: Any) -> None:
        """Train a new network on rows of arrays.

        Args:
            arrays: each ``[N, ...]``.
            progress: receives lines.
            training: ``trainer=`` and ``checkpoint=``.
        """
        trainer: Any = training.pop("trainer", None)
        checkpoint = training.pop("checkpoint", None)
        if training:
            raise UsageError(
                f"fit has no argument {next(iter(training))!r}; a training takes trainer= and checkpoint=."
            )
        with torch.random.fork_rng(devices=[]):  # Lightning's loaders draw from the global state too
            torch.manual_seed(int(self.args.seed))
            self.set_network(self.build())
            self.steps_done.zero_()
            trainer = default_trainer() if trainer is None else trainer
            self._check_trainer(trainer, len(next(iter(arrays.values()))))
            trainer.callbacks.append(Lines(progress, min(int(self.args.batch_size), len(next(iter(arrays.values()))))))
            trainer.fit(self, StreamLoader(Stream(arrays, self), batch_size=None), ckpt_path=checkpoint)
        if any(getattr(callback, "terminated", False) for callback in trainer.callbacks):  # by KeepLast
            progress(f"    {self.network}: stopped after step {int(self.steps_done)}; the same command goes on")
            raise SystemExit(143)  # a part of a training is no generator; its checkpoint is on disk
        self.eval()

    def _check_trainer(self, trainer: Any, rows: int) -> None:
        """Refuse what the stream of batches cannot serve.

        Raises:
            UsageError: batches that are accumulated, or too small to share.
        """
        size = min(int(self.args.batch_size), rows)
        problems = []
        if trainer.accumulate_grad_batches != 1:
            problems.append("accumulate_grad_batches must be 1: a larger batch_size does the same, and resumes exactly")
        if size < trainer.world_size:
            problems.append(f"a batch has {size} rows for {trainer.world_size} processes: take at least one for each")
        raise_all("the trainer", problems, UsageError)

    def on_train_start(self) -> None:
        if int(self.steps_done) >= int(self.args.steps):  # killed after its last step: not one more
            self.trainer.should_stop = True

    def set_network(self, net: nn.Module) -> None:
        """The network, and its average of now on."""
        self.net = net
        self.average = copy.deepcopy(net).requires_grad_(False).eval()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=self.args.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step / int(self.args.steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.stop_unless_finite(loss)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(next(iter(batch.values()))))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average, count the step."""
        done = int(self.steps_done)
        keep = min(float(self.args.ema), (1 + done) / (10 + done))
        ours: list[Tensor] = [*self.average.parameters()]
        theirs: list[Tensor] = [*self.net.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - keep)
        for own, new in zip(self.average.buffers(), self.net.buffers(), strict=True):
            own.copy_(new)
        self.steps_done += 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning's max_steps would count a GAN's two optimisers.
        if int(self.steps_done) >= int(self.args.steps):
            self.trainer.should_stop = True

    def privacy_problems(self) -> list[str]:
        """Why this module cannot be trained with differential privacy."""
        if type(self).batch is not GradientSteps.batch:
            return [f"{self.network} chooses the rows of a batch by their classes, which epsilon does not count"]
        return []

    def stop_unless_finite(self, loss: Tensor) -> None:
        """Every rank stops together before a step that would spoil the weights.

        Raises:
            Diverged: on every rank, when it is bad on any.
        """
        if not bool(torch.isfinite(distributed.averaged(loss.detach()))):
            raise Diverged(
                f"the loss became infinite or not a number after {int(self.steps_done)} steps. Lower the learning rate (now "
                f"{self.args.lr:g})."
            )

    # -- storing -----------------------------------------------------------------------------------------------------

    def average_weights(self) -> dict[str, Tensor]:
        """Weights of the average, by name."""
        return dict(self.average.state_dict())

    def restore_network(self, weights: dict[str, Tensor]) -> None:
        """The network again, from its average's weights."""
        with torch.random.fork_rng(devices=[]):
            net = self.build()
        net.load_state_dict(weights)
        self.set_network(net)


class Trained(Synthesizer, GradientSteps):
    """A table generator that is trained by gradient steps. Subclasses also write how a table is encoded.

    They have ``most_bins`` and ``rare_below`` among their arguments.
    """

    fits_privately = True

    @abstractmethod
    def fit_encoding(self, table: Table) -> list[str]:
        """Fit the encoding to a table; gives what people should know of it."""

    @abstractmethod
    def encode(self, table: Table) -> Arrays:
        """A table by the fitted encoding."""

    @abstractmethod
    def encoding_json(self) -> dict[str, Any]:
        """The encoding as plain JSON."""

    @abstractmethod
    def restore_encoding(self, said: Mapping[str, Any]) -> None:
        """The encoding again."""

    def weights(self) -> dict[str, Tensor]:
        return self.average_weights()

    def _fit(self, table: Table, progress: Progress, **training: Any) -> None:
        private: PrivateTable | None = training.pop("private", None)
        notes = self.fit_encoding(table if private is None else private.stand_ins)
        if private is None:
            self.add_notes(notes)
            self.train_on(self.encode(table), progress, **training)
            return
        callback = private_training(private)
        trainer: Any = training.pop("trainer", None) or default_trainer()
        trainer.callbacks.append(callback)
        self.train_on(self.encode(table), progress, trainer=trainer, **training)
        self._fitted = replace(self.fitted, privacy=callback.record())

    def arguments(self) -> dict[str, Any]:
        return {"hparams": dict(self.hparams), "encoding": self.encoding_json()}

    @classmethod
    def _restore(cls, fitted: Fitted, arguments: Mapping[str, Any], weights: dict[str, Tensor], device: str) -> Self:
        module = cls(**arguments["hparams"])
        module._fitted = fitted
        module.restore_encoding(arguments["encoding"])
        module.restore_network(weights)
        return module.to(device).eval()


def private_training(private: PrivateTable) -> DifferentialPrivacy:
    """The callback that makes a training on prepared rows private."""
    options = private.options
    callback = DifferentialPrivacy(
        options.epsilon, delta=private.delta, max_grad_norm=options.max_grad_norm, accountant=options.accountant,
        physical_batch_size=options.physical_batch_size, noise_multiplicity=options.noise_multiplicity, unit="row",
        before=private.releases,
    )  # fmt: skip
    callback.key = private.key
    return callback


def one_cycle(share: float) -> float:
    """Learning rate over a training, as a share of its peak: up in a tenth, down by a cosine.

    Example:
        >>> [round(one_cycle(share), 2) for share in (0.0, 0.1, 0.55, 1.0)]
        [0.04, 1.0, 0.5, 0.0]
    """
    if share < WARMUP:
        return 0.04 + 0.96 * share / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min((share - WARMUP) / (1 - WARMUP), 1.0)))


def default_trainer(**more: Any) -> pytorch_lightning.Trainer:
    """A trainer that goes on until the module has made its steps, logs nowhere and writes no checkpoint."""
    own = {
        "max_epochs": -1, "accelerator": "auto", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
    }  # fmt: skip
    return pytorch_lightning.Trainer(**{**own, **more})


class Lines(pytorch_lightning.Callback):
    """Lines of progress: steps, rows a second, time left."""

    def __init__(self, progress: Progress, rows: int) -> None:
        self.progress, self.rows = progress, rows
        self._started, self._last_line, self._first = 0.0, 0.0, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._started = self._last_line = time.monotonic()
        self._first = int(pl_module.steps_done)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self._last_line < TELL or self.progress is no_progress or not distributed.is_main():
            return
        self._last_line, done, steps = now, int(pl_module.steps_done), int(pl_module.args.steps)
        rate = (done - self._first) / (now - self._started)
        left = time_left((steps - done) / rate)
        self.progress(f"    {pl_module.network}: step {done} of {steps}, {rate * self.rows:.0f} rows/s, {left}")
