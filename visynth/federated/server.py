"""The server of a federated training: a Lightning training whose steps are rounds.

The sites' updates take the place of a gradient, so that the module's optimiser, warm-up, weight averages, checkpoints, resumes
and export are those of any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from visynth.core.artifact import FEDERATION
from visynth.core.errors import ConflictError, DataError, UsageError, raise_all
from visynth.federated.options import FederatedOptions
from visynth.federated.site import trained
from visynth.federated.updates import Tensors, check_alike, clipped, mean_update, noised, packed, unpacked
from visynth.privacy.accounting import Release, check_delta, epsilon_of, noise_for, statement
from visynth.privacy.dp import CHECKPOINT
from visynth.privacy.poisson import poisson_rows
from visynth.privacy.secret import new_key, secret_rng

NO_SECRET = "0" * 64


class Exchange(Protocol):
    """Carries messages between the server and its sites."""

    def __call__(self, message: bytes, sites: Sequence[str]) -> Mapping[str, bytes]:
        """Give every named site a message, and return the answers of those that gave one."""


class Federated(pytorch_lightning.Callback):
    """Train a module by the updates of sites: each step of the Trainer is a round.

    It fits every LightningModule with automatic optimisation and one optimiser. The server needs no images: its data are
    :class:`Rounds`. Everything that a site told is checked before it is used.

    Args:
        exchange: carries messages to the sites and back.
        options: of the federated training.
        facts: of the data, which all sites share; None for modules that know them.
        images: of one site in a round (local steps times batch size): how far the stream moves on.
        agreed: plain values that must be the same at all sites.
        key: secret of noise and of the choice of sites, for tests alone. None: one of the operating system.

    Raises:
        UsageError: what a federated training cannot respect, all at once; an epsilon that is out of reach.
        DataError: a site's answer that is not what was asked for; fewer answers than ``min_sites``.
    """

    def __init__(
        self,
        exchange: Exchange,
        options: FederatedOptions,
        facts: Any = None,
        images: int = 0,
        agreed: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> None:
        self.exchange, self.options, self.facts, self.images = exchange, options, facts, images
        self.agreed = dict(agreed or {})
        self.key = key or (new_key() if options.privacy else NO_SECRET)
        self.answers = dict.fromkeys(options.names, 0)
        self.counts: dict[str, dict[str, int]] = {}
        self.noise = 0.0
        self.rounds_done = 0
        self.pays_for_privacy = options.privacy is not None
        self._restored: dict[str, Any] | None = None

    # -- Lightning -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        check_server(trainer, pl_module)
        if self.options.privacy is not None:
            self.noise = self._noise(int(trainer.max_steps))
        pl_module.training_step = lambda batch, batch_idx: self._round(pl_module)
        if self.options.algorithm == "fedavg":
            pl_module.configure_optimizers = lambda: Averaging(trained(pl_module).values())

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._check_restored()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Exports during the training tell what is true then; copies of the module do not copy this callback.
        pl_module.federation = lambda: self.record()
        if self.options.privacy is not None:
            pl_module.privacy = lambda: self.spent()
            rounds, said = int(trainer.max_steps), self.statement(int(trainer.max_steps))
            pl_module.print(
                f"differential privacy of sites: epsilon {said['epsilon']:.3g} at delta {said['delta']:g} after {rounds} rounds, "
                f"noise {self.noise:.3g} times max_update_norm {self.options.max_update_norm:g}; checkpoints are not private."
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rounds_done = int(trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            for name in ("training_step", "configure_optimizers"):
                vars(pl_module).pop(name, None)
            pl_module.federation = self.record()
            if self.options.privacy is not None:
                pl_module.privacy = self.spent()

    def state_dict(self) -> dict[str, Any]:
        return {
            "key": self.key, "rounds_done": self.rounds_done, "answers": dict(self.answers), "counts": dict(self.counts),
            "noise": self.noise, "agreed": self.agreed,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
        self.key, self.rounds_done = state_dict["key"], int(state_dict["rounds_done"])
        self.answers, self.counts = dict(state_dict["answers"]), dict(state_dict["counts"])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[FEDERATION] = self.record()
        if self.options.privacy is not None:
            checkpoint[CHECKPOINT] = self.spent()

    # -- a round ---------------------------------------------------------------------------------------------------------

    def _round(self, pl_module: Any) -> Tensor:
        """Ask the sites, and give Lightning a loss whose gradient is the mean of their updates."""
        number, own = int(pl_module.trainer.global_step), trained(pl_module)
        update, loss = self._mean(number, own)
        span = self.images * len(self.options.sites)
        if hasattr(pl_module, "images_seen"):
            pl_module.images_seen += span
        if loss is not None:
            pl_module.log("loss", loss, prog_bar=True, batch_size=max(span, 1))
        along = sum((p * update[name].to(p.device)).sum() for name, p in own.items())
        assert isinstance(along, Tensor)
        return along - along.detach() + (0.0 if loss is None else loss)

    def _mean(self, number: int, own: Mapping[str, nn.Parameter]) -> tuple[Tensors, float | None]:
        """Mean update of a round, and the sites' mean loss."""
        options, weights = self.options, {name: p.detach().cpu() for name, p in own.items()}
        asked = self.chosen(number)
        facts = {
            "round": number, "first": number * self.images * len(options.sites), "images": self.images, "agreed": self.agreed,
            "facts": None if self.facts is None else self.facts.to_json(),
        }  # fmt: skip
        answers = self.exchange(packed(weights, **facts), asked) if asked else {}
        told = {name: self._read(name, answers[name], number, weights) for name in asked if name in answers}
        self._check_enough(number, asked, told)
        for name in told:
            self.answers[name] += 1
        shares = [1.0 if options.weights == "equal" else float(facts["images"]) for _, facts in told.values()]
        updates = [clipped(update, options.max_update_norm) for update, _ in told.values()]
        if options.privacy is not None:
            expected = options.share_of_sites * len(options.sites)
            still: list[Tensors] = updates or [{name: torch.zeros_like(w) for name, w in weights.items()}]
            mean = mean_update(still, shares or [0.0], expected)
            deviation = self.noise * float(options.max_update_norm or 0.0) / expected
            return noised(mean, deviation, secret_rng(self.key, f"sites/{number}")), None
        if not updates:
            return {name: torch.zeros_like(w) for name, w in weights.items()}, None
        losses = [float(facts["loss"]) for _, facts in told.values()]
        total = sum(shares)
        return mean_update(updates, shares, total), sum(a * b for a, b in zip(losses, shares, strict=True)) / total

    def chosen(self, number: int) -> list[str]:
        """Sites that are asked in a round: each with probability ``share_of_sites``."""
        names = self.options.names
        return [names[row] for row in poisson_rows(self.key, number, len(names), self.options.share_of_sites)]

    def _read(
        self, name: str, answer: bytes, number: int, like: Mapping[str, Tensor]
    ) -> tuple[Tensors, dict[str, Any]]:
        """A site's update, after all checks."""
        sender = f"site {name}"
        update, facts = unpacked(answer, sender)
        check_alike(update, like, sender)
        if (facts.get("site"), facts.get("round")) != (name, number):
            raise DataError(
                f"{sender} was asked for round {number}, and answered as {facts.get('site')!r} for round {facts.get('round')}."
            )
        if self.options.privacy is None and self.options.weights == "images" and not facts.get("images", 0) > 0:
            raise DataError(f"{sender} counts by its images, but told of {facts.get('images', 'none')}.")
        if "counts" in facts:
            self.counts[name] = {str(key): int(value) for key, value in facts["counts"].items()}
        return update, facts

    def _check_enough(self, number: int, asked: Sequence[str], told: Mapping[str, Any]) -> None:
        missing = [name for name in asked if name not in told]
        if self.options.privacy is not None or not missing:
            return
        least = len(asked) if self.options.min_sites is None else min(self.options.min_sites, len(asked))
        if len(told) < least:
            raise DataError(
                f"round {number}: {len(told)} of {len(asked)} sites answered (missing: {', '.join(missing)}), {least} are needed. "
                "The same command goes on from the last checkpoint; federated.min_sites allows fewer."
            )
        print(f"round {number}: no answer from {', '.join(missing)}", flush=True)

    # -- what is told ----------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Entries of the generator's card."""
        options = self.options
        said: dict[str, Any] = {
            "sites": len(options.sites), "rounds": self.rounds_done, "algorithm": options.algorithm, "local steps": options.local_steps,
            "weights": options.weights, "longest update": options.max_update_norm, "share of sites": options.share_of_sites,
        }  # fmt: skip
        if options.privacy is None:
            said["answers"] = dict(self.answers)
        return said | ({"images per class and site": dict(self.counts)} if self.counts else {})

    def statement(self, rounds: int) -> dict[str, Any]:
        """Epsilon of a site after some rounds, and what it rests on."""
        options, privacy = self.options, self.options.privacy
        assert privacy is not None
        sites = len(options.sites)
        release = Release("federated rounds", self.noise, options.share_of_sites, rounds)
        return statement(
            [release], check_delta(privacy.delta, sites), privacy.accountant, "site",
            f"Poisson, {options.share_of_sites:g} of the sites a round",
            **{"noise multiplier": self.noise, "max_update_norm": options.max_update_norm, "rounds": rounds},
        )  # fmt: skip

    def spent(self) -> dict[str, Any]:
        """Epsilon of a site so far."""
        return self.statement(self.rounds_done)

    def _noise(self, rounds: int) -> float:
        """The least noise that keeps a site's privacy over all rounds.

        Raises:
            UsageError: it would drown every update.
        """
        privacy, sites, rate = self.options.privacy, len(self.options.sites), self.options.share_of_sites
        assert privacy is not None
        delta = check_delta(privacy.delta, sites)
        noise = noise_for(privacy.epsilon, delta, rate, rounds, accountant=privacy.accountant)
        most = privacy.most_noise * rate * sites
        if noise > most:
            reachable = epsilon_of([Release("federated rounds", most, rate, rounds)], delta, privacy.accountant)
            raise UsageError(
                f"epsilon {privacy.epsilon:g} for each of {sites} sites over {rounds} rounds needs noise of "
                f"{noise / (rate * sites):.3g} times max_update_norm in each coordinate of the mean update (at most "
                f"{privacy.most_noise:g} here): nothing would be learned. Reachable so: epsilon {reachable:.3g}. More sites and fewer "
                "rounds need less; or protect images instead of sites, by a private training at each."
            )
        return noise

    def _check_restored(self) -> None:
        if self._restored is None:
            return
        before, now = self._restored, {"noise": self.noise, "agreed": self.agreed}
        changed = [f"{name}: {before[name]!r} there, {now[name]!r} here" for name in now if before[name] != now[name]]
        raise_all("the checkpoint's federated training is another one, which", changed, ConflictError)


class Averaging(torch.optim.Optimizer):
    """Takes the mean update off the weights, as it is: the learning rate was the sites'."""

    def __init__(self, params: Any) -> None:
        super().__init__(list(params), {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= p.grad
        return loss


class Rounds(pytorch_lightning.LightningDataModule):
    """Data of a server: none. Each batch is a round.

    Args:
        facts: of the sites' data, as far as all share them.
    """

    def __init__(self, facts: Any = None) -> None:
        super().__init__()
        self.private = True
        if facts is not None:
            self.facts = facts

    def train_dataloader(self) -> DataLoader[int]:
        return _RoundLoader(_Rounds(), batch_size=None)


class _Rounds(Dataset[int]):
    """A hundred rounds make an epoch; which they are is the Trainer's step."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, row: int) -> int:
        return row


class _RoundLoader(DataLoader[int]):
    """A loader that Lightning may resume in the middle of an epoch: there is nothing to restore."""

    def state_dict(self) -> dict[str, Any]:
        return {"resumes": "by global_step"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def check_server(trainer: Any, module: Any) -> None:
    """Refuse what a federated training cannot respect.

    Raises:
        UsageError: all of it at once.
    """
    raise_all("federated training", [*_trainer_problems(trainer), *_module_problems(module)], UsageError)


def _trainer_problems(trainer: Any) -> list[str]:
    problems = []
    if trainer.max_steps is None or trainer.max_steps < 1:
        problems.append("name the number of rounds: trainer.max_steps")
    if trainer.accumulate_grad_batches != 1:
        problems.append(f"accumulate_grad_batches {trainer.accumulate_grad_batches}: a step is a round, take 1")
    if trainer.world_size > 1:
        problems.append(f"{trainer.world_size} processes: the server only adds up, take devices: 1")
    if str(trainer.precision).startswith("16"):
        problems.append(
            f"precision {trainer.precision} leaves steps out where a gradient overflows: take bf16-mixed or 32-true"
        )
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if name == "DifferentialPrivacy":
            problems.append(
                "DifferentialPrivacy protects the images of one training: here federated.privacy protects sites"
            )
        elif getattr(callback, "reads_real_images", False):
            problems.append(f"{name} measures against real images, which the server does not have: leave it out")
        elif "EarlyStopping" in {kind.__name__ for kind in type(callback).__mro__}:
            problems.append(f"{name} looks at validation data, which the server does not have: leave it out")
    return problems


def _module_problems(module: Any) -> list[str]:
    name = type(module).__name__
    problems = list(module.federation_problems()) if hasattr(module, "federation_problems") else []
    if not module.automatic_optimization:
        problems.append(
            f"{name} takes its optimiser's steps itself: only automatic optimisation with one optimiser is federated (diffusion, "
            "inpainting, classifiers, LoRA)"
        )
    running = [
        key for key, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats and layer.training
    ]  # fmt: skip
    if running:
        problems.append(
            f"running statistics ({', '.join(running[:5])}) are the sites' own and never leave them: take GroupNorm"
        )
    return problems
