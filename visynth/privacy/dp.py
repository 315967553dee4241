"""Differential privacy for a training: one callback that makes optimiser and loader private, and refuses what would not be.

It fits every LightningModule that is trained by one optimiser with automatic optimisation and whose loss is a mean of losses
of single rows, and adversarial ones of which one part alone sees real rows (:mod:`visynth.privacy.adversary`). That each
parameter sees one row a unit is checked at every step, and that rows' gradients add up to the batch's in the first steps; a
loss in which rows look at each other in another way than by BatchNorm is not noticed. Lightning sees one batch a step,
however large: parts of it are clipped and summed within the step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import pytorch_lightning
import torch

from visynth.core.errors import ConflictError, UsageError, raise_all
from visynth.privacy.accounting import Accountant, Release, check_delta, opacus, option_problems
from visynth.privacy.adversary import Adversary
from visynth.privacy.loaders import PlainLoader
from visynth.privacy.plan import PrivacyPlan
from visynth.privacy.poisson import PlacedGroups, PlacedRows, PoissonBatches
from visynth.privacy.refusals import (
    layer_problems,
    loader_problems,
    module_problems,
    schedule_problems,
    trainer_problems,
)
from visynth.privacy.secret import new_key

CHECKPOINT = "visynth_privacy"


class DifferentialPrivacy(pytorch_lightning.Callback):
    """Train so that the weights hardly depend on any one unit: (epsilon, delta)-differential privacy by DP-SGD.

    The optimiser is wrapped, and the training loader replaced by one of Poisson samples of the same data. Epsilon goes on
    over resumes, and is written to checkpoints and to the card of the exported generator. Two data sets are neighbours where one
    unit is left out; the number of units is taken as known. What is not private: the log of losses, checkpoints (the key of the
    noise is in them), refusals and errors. Noise is that of a counter-based generator in floating point: no attack on its
    rounding (Mironov, CCS 2012) is defended against. What a training starts from (a pretrained network, a generator to transfer from)
    counts as public: that it never saw these data is yours to know.

    Args:
        epsilon: of preprocessing and training together.
        steps: of the training; None: as many as the module says, or the trainer's ``max_steps``.
        delta: by default the largest power of ten below one in the number of units.
        batch_size: units expected in a step; None: that of the loader.
        max_grad_norm: length to which a unit's gradient is cut.
        accountant: ``"rdp"`` or ``"prv"`` (tighter); both are told.
        physical_batch_size: rows that are held at once; None: all of a batch.
        noise_multiplicity: rows of a unit in its batch, each with its own noise and augmentation: copies of its one row, or rows
            of its group in turn.
        unit: what is protected, in one word: what a row of the data is, or a group.
        groups: None where each row is a unit; "data" for the groups of the data (``groups`` or ``group_pattern`` of
            :class:`~visynth.lightning_modules.GeneratorData`; an attribute ``groups`` of a dataset of yours); or the group of each row
            of your dataset. By this alone is a patient with many images protected as a whole.
        most_noise: noise of a step over the batch and ``max_grad_norm``, above which nothing is learned and the training is
            refused.
        before: releases of the same data that were paid for already.
        key: fixed secret, for tests alone: whoever knows it can take the noise off. None: one of the operating system.

    Raises:
        UsageError: what breaks the guarantee, all at once: see :mod:`visynth.privacy.refusals`; an epsilon that these data
            cannot reach with any use left.
        ConflictError: a checkpoint of a training with another plan.

    Example:
        >>> trainer = pytorch_lightning.Trainer(callbacks=[DifferentialPrivacy(epsilon=3, steps=100)], logger=False,
        ...     accelerator="cpu", enable_checkpointing=False)
    """

    pays_for_privacy = True

    def __init__(
        self,
        epsilon: float,
        steps: int | None = None,
        delta: float | None = None,
        batch_size: int | None = None,
        max_grad_norm: float = 1.0,
        accountant: Accountant = "rdp",
        physical_batch_size: int | None = None,
        noise_multiplicity: int = 1,
        unit: str = "image",
        groups: Literal["data"] | list[str] | None = None,
        most_noise: float = 0.1,
        before: Sequence[Release] = (),
        key: str | None = None,
    ) -> None:
        opacus()
        problems = option_problems(
            epsilon, max_grad_norm, steps=steps, batch_size=batch_size, physical_batch_size=physical_batch_size,
            noise_multiplicity=noise_multiplicity,
        )  # fmt: skip
        raise_all("DifferentialPrivacy", problems, UsageError)
        self.epsilon, self.steps, self.delta, self.batch_size = epsilon, steps, delta, batch_size
        self.max_grad_norm, self.accountant, self.physical_batch_size = max_grad_norm, accountant, physical_batch_size
        self.noise_multiplicity, self.unit, self.most_noise = noise_multiplicity, unit, most_noise
        self.groups = groups
        self.before, self.public_key = tuple(before), key is not None
        self.key = new_key() if key is None else key
        self.steps_done = 0
        self.plan: PrivacyPlan | None = None
        self._restored: dict[str, Any] | None = None
        self._silence: Any = None
        self._private_steps: Any = None  # the steps of the private optimiser, while it trains

    # -- Lightning -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        raise_all("differential privacy", [*trainer_problems(trainer), *module_problems(pl_module)], UsageError)
        if int(getattr(pl_module, "images_seen", 0)) or int(getattr(pl_module, "steps_done", 0)):
            raise ConflictError(
                "the module was trained already, which this training cannot pay for: begin with a new one."
            )
        self._silence = warnings.catch_warnings()
        self._silence.__enter__()
        for message in (
            "Full backward hook is firing",
            "Seems like `optimizer.step",
        ):  # Opacus's hooks, and the schedule
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        if hasattr(trainer.datamodule, "forget_statistics"):
            trainer.datamodule.forget_statistics()
        configure, step = pl_module.configure_optimizers, pl_module.training_step
        pl_module.configure_optimizers = lambda: self._configured(trainer, pl_module, configure)
        if pl_module.automatic_optimization:
            pl_module.training_step = lambda batch, batch_idx: self._private_steps.automatic(
                pl_module, step, batch, batch_idx
            )
        else:
            pl_module.training_step = lambda batch, batch_idx: self._private_steps.adversarial(pl_module, batch)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        plan = self._planned()
        # Exports during the training tell what was spent until then; copies of the module do not copy this callback.
        pl_module.privacy = lambda: self.record()
        if self.steps_done >= plan.steps:
            trainer.should_stop = True
        spent = plan.spent(plan.steps)
        pl_module.print(
            f"differential privacy: epsilon {spent['epsilon']:.3g} at delta {plan.delta:g} after {plan.steps} steps "
            f"(rdp {spent['epsilon by rdp']:.3g}, prv {spent['epsilon by prv']:.3g}), noise {plan.noise:.3g} times the gradient "
            f"of one {plan.unit}, which is cut to {plan.max_grad_norm:g}; {plan.batch} of {plan.units} {plan.unit}s a step by "
            "chance. Logged losses and checkpoints are not private."
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.steps_done >= self._planned().steps:
            trainer.should_stop = True

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._undo(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._undo(trainer, pl_module)

    def _undo(self, trainer: Any, pl_module: Any) -> None:
        """The module and its data as they were, with the record of what was spent."""
        if self._silence is not None:
            self._silence.__exit__(None, None, None)
            self._silence = None
        if self._private_steps is not None:
            pl_module.privacy = self.record()
            self._private_steps.hooks.remove_hooks()
        for name in ("configure_optimizers", "training_step"):
            vars(pl_module).pop(name, None)
        source = trainer.fit_loop._data_source
        if source.is_module():
            vars(source.instance).pop("train_dataloader", None)
        for parameter in pl_module.parameters():
            for name in ("grad_sample", "summed_grad", "_forward_counter"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
        self._private_steps = None

    def state_dict(self) -> dict[str, Any]:
        plan = None if self.plan is None else asdict(self.plan) | {"before": [r.to_json() for r in self.plan.before]}
        return {"key": self.key, "steps_done": self.steps_done, "plan": plan, "public_key": self.public_key}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
        self.key, self.steps_done = state_dict["key"], int(state_dict["steps_done"])
        self.public_key = bool(state_dict["public_key"])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT] = self.record()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if CHECKPOINT not in checkpoint:
            raise ConflictError(
                "the checkpoint is of a training without differential privacy: what it learned was not paid for. Start anew, "
                "in another folder."
            )

    # -- parts -----------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Epsilon spent so far and what it rests on."""
        said = self._planned().spent(self.steps_done)
        if self.public_key:
            said["not private"] = "the key of the noise was given, as tests do: whoever knows it can take the noise off"
        return said

    def _planned(self) -> PrivacyPlan:
        if self.plan is None:
            raise UsageError("there is no private training yet: give the callback to a Trainer and fit.")
        return self.plan

    def _replace_loader(self, trainer: Any, pl_module: Any) -> None:
        """Put a loader of Poisson samples into the training loader's place, and make the plan for its data."""
        source = trainer.fit_loop._data_source
        loader = self._private(trainer, pl_module, source.dataloader())
        if source.is_module():
            source.instance.train_dataloader = lambda: loader
        else:
            source.instance = loader

    def _private(self, trainer: Any, pl_module: Any, loader: Any) -> Any:
        """The plan for a loader's data, and the loader of Poisson samples."""
        own = hasattr(loader, "private")
        problems = getattr(loader, "privacy_problems", list)() if own else loader_problems(loader)
        raise_all("differential privacy", problems, UsageError)
        loader = loader if own else PlainLoader(loader)
        rows = self._placed(loader)
        units = rows.count
        batch = min(self.batch_size or int(loader.expected), units)
        steps = self._steps(trainer, pl_module)
        delta = check_delta(self.delta, units)
        self.plan = PrivacyPlan.of(
            self.epsilon, delta, most_noise=self.most_noise, unit=self.unit, units=units, batch=batch, steps=steps,
            max_grad_norm=self.max_grad_norm, multiplicity=self.noise_multiplicity, accountant=self.accountant,
            before=self.before, grouping=rows.digest,
        )  # fmt: skip
        self._check_restored()
        length = max(1, math.ceil(int(getattr(loader, "epoch_rows", units)) / batch))
        return loader.private(PoissonBatches(rows, self.plan.rate, self.key, lambda: self.steps_done, length))

    def _placed(self, loader: Any) -> PlacedRows | PlacedGroups:
        """The units of a loader's data, and their rows."""
        count = int(loader.rows)
        if self.groups is None:
            return PlacedRows(count, self.noise_multiplicity)
        groups = getattr(loader, "groups", None) if self.groups == "data" else self.groups
        if self.groups != "data" and not isinstance(loader, PlainLoader):
            raise UsageError(
                "differential privacy by group: these data are put in order, and partly held out, by themselves: say groups: data, and "
                "name the groups where the data are named (groups or group_pattern)."
            )
        if groups is None:
            raise UsageError(
                "differential privacy by group: the data have no groups. Give GeneratorData groups or group_pattern, the dataset an "
                "attribute 'groups' with the group of each row, or list them here."
            )
        if len(groups) != count:
            raise UsageError(f"differential privacy by group: {len(groups)} groups are named for {count} rows.")
        return PlacedGroups.of(groups, self.noise_multiplicity)

    def _steps(self, trainer: Any, pl_module: Any) -> int:
        steps: Any = self.steps
        if pl_module.automatic_optimization:  # else the trainer counts the steps of two optimisers
            steps = steps or getattr(pl_module.hparams, "steps", None) or trainer.max_steps
        if steps is None or steps < 1:
            raise UsageError(
                "differential privacy: name the steps of the training (steps: 2000): the noise depends on them."
            )
        return int(steps)

    def _check_restored(self) -> None:
        """A resumed training has the plan that it began with."""
        if self._restored is None or self._restored["plan"] is None:
            return
        before, now = self._restored["plan"], self.state_dict()["plan"]
        changed = [f"{name}: {before[name]!r} there, {now[name]!r} here" for name in now if before[name] != now[name]]
        raise_all("the checkpoint's plan of privacy is another one, which", changed, ConflictError)

    def _configured(self, trainer: Any, pl_module: Any, configure: Callable[[], Any]) -> Any:
        """The module's optimiser, made private; the plan and the loader before it."""
        from visynth.privacy.optimizer import PrivateOptimizer, RowGradients
        from visynth.privacy.steps import PrivateSteps

        part = pl_module.private_part() if hasattr(pl_module, "private_part") else pl_module
        raise_all("differential privacy", layer_problems(part), UsageError)
        self._replace_loader(trainer, pl_module)
        plan, found = self._planned(), configure()
        if (
            isinstance(found, tuple)
            and len(found) == 2
            and all(isinstance(part, list) and len(part) == 1 for part in found)
        ):
            found = {"optimizer": found[0][0], "lr_scheduler": found[1][0]}
        optimizer = found["optimizer"] if isinstance(found, dict) else found
        others: list[Any] = []
        if isinstance(optimizer, (list, tuple)):
            others = list(optimizer[1:])
            optimizer = optimizer[0] if not others or isinstance(pl_module, Adversary) else None
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UsageError(
                "differential privacy needs a module with one optimiser, given alone or with its schedule."
            )
        private = PrivateOptimizer(
            optimizer, noise=plan.noise, max_grad_norm=plan.max_grad_norm, batch=plan.batch,
            multiplicity=plan.multiplicity, key=self.key, step=lambda: self.steps_done,
        )  # fmt: skip
        private.attach_step_hook(self._stepped)
        hooks = RowGradients(part, loss_reduction="mean", strict=True)
        self._private_steps = PrivateSteps(
            private,
            hooks,
            self.physical_batch_size,
            plan.multiplicity,
            plan.batch * plan.multiplicity,
            self._count_images,
        )
        if not isinstance(found, dict):
            return [private, *others] if others else private
        schedule = found.get("lr_scheduler")
        raise_all("differential privacy", schedule_problems(schedule), UsageError)
        scheduler = schedule["scheduler"] if isinstance(schedule, dict) else schedule
        if scheduler is not None:
            scheduler.optimizer = private
        return {**found, "optimizer": private}

    def _stepped(self, optimizer: Any) -> None:
        self.steps_done += 1

    def _count_images(self, pl_module: Any, steps: int) -> None:
        """A module's count, which warm-up and weight averages follow, goes by the expected batch: the true one is private."""
        if hasattr(pl_module, "images_seen"):
            pl_module.images_seen.fill_(steps * self._planned().batch)
