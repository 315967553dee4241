"""Base class of the modules that train a generator: arguments, its data, the count of images, warm-up, and the stop
before harm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytorch_lightning
import torch
from torch import Tensor, nn

from visynth.core import distributed
from visynth.core.artifact import FEDERATION, PRIVACY
from visynth.core.errors import ConflictError, Diverged, UsageError
from visynth.core.judges import USED
from visynth.core.members import Member
from visynth.generators.base import Spec
from visynth.lightning_modules.data_checks import check_same_data
from visynth.lightning_modules.facts import Facts
from visynth.lightning_modules.prefetch import Prefetcher
from visynth.lightning_modules.randomness import Draws, draw
from visynth.privacy.dp import CHECKPOINT

T = TypeVar("T")


class GeneratorModule(pytorch_lightning.LightningModule):
    """Subclasses call ``save_hyperparameters`` with ``lr``, ``warmup`` (images) and ``seed`` among their arguments, and
    write ``build``."""

    images_seen: Tensor
    stepped_at: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("stepped_at", torch.zeros((), dtype=torch.int64))
        self._facts: Facts | None = None
        self._privacy: Callable[[], dict[str, Any]] | dict[str, Any] = {}
        self._federation: Callable[[], dict[str, Any]] | dict[str, Any] = {}
        self.ahead = Prefetcher()

    @property
    def built(self) -> bool:
        """Whether the data are known, and with them the network."""
        return self._facts is not None

    @property
    def facts(self) -> Facts:
        """Properties of the data. A UsageError where they are not known yet."""
        return present(self._facts)

    def draw(self, positions: Sequence[int], shape: Sequence[int]) -> Draws:
        """Random numbers of a batch; those of the next one are drawn while this one trains."""
        seed, size = self.args.seed, tuple(shape)
        return self.ahead(f"draws/{size}", lambda places: draw(seed, places, size), positions)

    def build(self, facts: Facts) -> None:
        """Make the network for some data."""
        raise NotImplementedError

    @property
    def args(self) -> Any:
        """The arguments by name."""
        return self.hparams

    @property
    def data(self) -> Any:
        """The datamodule that the module is trained with, or None."""
        return None if self._trainer is None else getattr(self._trainer, "datamodule", None)

    @property
    def extractors(self) -> dict[str, str]:
        """Networks of features that train this module, or choose among its states, and what for."""
        return dict(self.__dict__.get("_extractors", {}))

    def uses_extractor(self, name: str, what: str) -> None:
        """Note a network that has a hand in the training: it cannot judge what comes out."""
        self.__dict__.setdefault("_extractors", {})[name] = what

    @property
    def privacy(self) -> dict[str, Any]:
        """What a private training spent so far, and what that rests on; empty without."""
        return self._privacy() if callable(self._privacy) else self._privacy

    @privacy.setter
    def privacy(self, spent: Callable[[], dict[str, Any]] | dict[str, Any]) -> None:
        self._privacy = spent

    @property
    def federation(self) -> dict[str, Any]:
        """What a training over sites was so far; empty for a training on data at hand."""
        return self._federation() if callable(self._federation) else self._federation

    @federation.setter
    def federation(self, record: Callable[[], dict[str, Any]] | dict[str, Any]) -> None:
        self._federation = record

    def members(self) -> Sequence[Member]:
        """Fingerprints of the images behind the module, as far as its datamodule knows them; none of private ones."""
        return self.data.members() if hasattr(self.data, "members") and not self.privacy else ()

    def trained_card(self, task: str, network: nn.Module, **more: Any) -> dict[str, Any]:
        """Entries of a generator's card about its training; ``more`` stands before the licence."""
        pairs = zip(self.facts.classes, self.facts.counts, strict=True)
        counts = {
            "training images": sum(self.facts.counts),
            "images per class": ", ".join(f"{name} {count}" for name, count in pairs),
            "images seen in training": int(self.images_seen),
        }
        return {
            "task": task,
            **({} if self.privacy or self.federation else counts),
            **({PRIVACY: self.privacy} if self.privacy else {}),
            **({FEDERATION: self.federation} if self.federation else {}),
            "parameters": sum(p.numel() for p in network.parameters()),
            **more,
            **({USED: dict(self.extractors)} if self.extractors else {}),
            "licence": "as the images that it was trained on",
            "made by": "visynth fit",
        }

    def trained_spec(self, network: str, arguments: dict[str, Any]) -> Spec:
        """Spec of the generator that the module exports.

        Args:
            network: registered name.
            arguments: plain values that the network is built with.
        """
        facts, args = self.facts, self.args
        return Spec(
            network=network,
            arguments=arguments,
            classes=facts.classes,
            channels=facts.channels,
            size=facts.size,
            dtype=facts.dtype,
            sampler=args.sampler,
            micro_batch=args.micro_batch,
            kind="trained",
        )

    def finish_step(self, loss: Tensor, count: int) -> Tensor:
        """Log a batch's loss and count its images over all ranks; a loss that is not finite stops all of them here."""
        self.stop_if(not bool(torch.isfinite(loss)), "the loss")
        self.log("loss", loss.detach(), prog_bar=True, batch_size=count)
        self.images_seen += count * distributed.world_size()
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        share = min(1.0, int(self.images_seen) / max(self.args.warmup, 1))
        for group in optimizer.param_groups:
            group["lr"] = self.args.lr * share
        # GradScaler looks for infinities itself and skips such steps; everywhere else they would destroy the weights.
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self.stop_if(not bool(torch.isfinite(torch.stack(norms)).all()), "a gradient")

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        # Here and not in a later hook: a checkpoint written at the end of the batch must hold all of this step.
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_step(int(self.images_seen), int(self.stepped_at))
        self.stepped_at.copy_(self.images_seen)

    def after_step(self, now: int, before: int) -> None:
        """Called when the weights have moved; ``now`` and ``before`` count images at this step and the last one."""

    def stop_if(self, bad: bool, what: str) -> None:
        """Every rank stops together, before a step that would spoil the weights.

        Raises:
            Diverged: on every rank, when it is bad on any.
        """
        if distributed.world_size() > 1:
            flag = torch.tensor(float(bad), device=self.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            bad = bool(flag)
        if bad:
            raise Diverged(
                f"{what} became infinite or not a number after {int(self.images_seen)} images. The weights are still "
                "those of the last finite step, "
                f"and checkpoints hold them. Lower the learning rate (now {self.args.lr:g}) or clip gradients "
                "(trainer.gradient_clip_val: 1.0), and run the same command again."
            )

    def on_fit_start(self) -> None:
        trainer: Any = self.trainer
        if self.privacy and not any(getattr(part, "pays_for_privacy", False) for part in (self, *trainer.callbacks)):
            raise ConflictError(
                "the module was trained with differential privacy: a training without its callback would make the stated epsilon "
                "wrong. Begin with a new module."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["visynth_facts"] = self.facts.to_json()  # the record of privacy is its callback's
        if hasattr(self.data, "state"):
            checkpoint["visynth_data"] = self.data.state()
        if self.extractors:
            checkpoint["visynth_extractors"] = self.extractors
        # The images of a step that was not finished are met again.
        checkpoint["state_dict"]["images_seen"] = self.stepped_at.clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.privacy, self.federation = checkpoint.get(CHECKPOINT, {}), checkpoint.get(FEDERATION, {})
        for name, what in checkpoint.get("visynth_extractors", {}).items():
            self.uses_extractor(name, what)
        if hasattr(self.data, "state"):
            check_same_data(checkpoint.get("visynth_data", {}), self.data.state())
        if not self.built:
            self.build(Facts.from_json(checkpoint["visynth_facts"]))


def present(part: T | None) -> T:
    """What is there once the data are known.

    Raises:
        UsageError: they are not known yet.
    """
    if part is None:
        raise UsageError("there is no network yet: fit the module, or load a checkpoint.")
    return part
