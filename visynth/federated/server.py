"""The server of a federated training: a Lightning training whose steps are rounds.

The sites' updates take the place of a gradient, so that the module's optimiser, warm-up, weight averages, checkpoints, resumes
and export are those of any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from visynth.core.artifact import FEDERATION
from visynth.core.errors import ConflictError, DataError, UsageError, raise_all
from visynth.federated.checks import check_server, fact_problems, layer_problems
from visynth.federated.options import FederatedOptions
from visynth.federated.site import digest, trained, untrained
from visynth.federated.steps import Averaging
from visynth.federated.updates import Tensors, check_alike, clipped, mean_update, noised, packed, unpacked
from visynth.privacy.accounting import Release, check_delta, epsilon_of, noise_for, statement
from visynth.privacy.dp import CHECKPOINT
from visynth.privacy.poisson import poisson_rows
from visynth.privacy.secret import new_key, secret_rng

NO_SECRET = "0" * 64
FREE = ("sites", "engine", "round_timeout", "min_sites")  # options that may change between the starts of one training


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
        ConflictError: a module or checkpoint of another training.
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
        self.untrained = ""
        self._restored: dict[str, Any] | None = None

    # -- Lightning -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        check_server(trainer, pl_module, self.options)
        if self.options.privacy is not None:
            self.noise = self._noise(int(trainer.max_steps))
        pl_module.training_step = lambda batch, batch_idx: self._round(pl_module)
        if self.options.algorithm == "fedavg":
            pl_module.configure_optimizers = lambda: Averaging(trained(pl_module).values())

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        raise_all("federated training", layer_problems(pl_module), UsageError)  # now that all layers are built
        if self._restored is not None:
            self._check_restored()
        elif int(getattr(pl_module, "images_seen", 0)) or trainer.global_step:
            raise ConflictError(
                "the module was trained already, otherwise than over these sites: begin with a new one."
            )
        else:
            self.untrained = digest(untrained(pl_module))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Exports during the training tell what is true then; copies of the module do not copy this callback.
        pl_module.federation = lambda: self.record()
        if self.options.privacy is not None:
            pl_module.privacy = lambda: self.spent()
            rounds, whole = int(trainer.max_steps), self.statement(int(trainer.max_steps))
            pl_module.print(
                f"differential privacy of sites: epsilon {whole['epsilon']:.3g} at delta {whole['delta']:g} after {rounds} rounds, "
                f"noise {self.noise:.3g} times max_update_norm {self.options.max_update_norm:g}; checkpoints and this log are not "
                "private."
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rounds_done = int(trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._undo(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._undo(pl_module)

    def _undo(self, pl_module: Any) -> None:
        """The module as it was, with the record of what was done."""
        for name in ("training_step", "configure_optimizers"):
            vars(pl_module).pop(name, None)
        pl_module.federation = self.record()
        if self.options.privacy is not None:
            pl_module.privacy = self.spent()

    def state_dict(self) -> dict[str, Any]:
        return {
            "key": self.key, "rounds_done": self.rounds_done, "answers": dict(self.answers), "counts": dict(self.counts),
            "noise": self.noise, "agreed": self.agreed, "options": asdict(self.options), "untrained": self.untrained,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
        self.key, self.rounds_done = state_dict["key"], int(state_dict["rounds_done"])
        self.answers, self.counts = dict(state_dict["answers"]), dict(state_dict["counts"])
        self.untrained = state_dict["untrained"]

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if FEDERATION not in checkpoint:
            raise ConflictError(
                "the checkpoint is of a training on data at hand: start the one over sites anew, in another folder."
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[FEDERATION] = self.record()
        if self.options.privacy is not None:
            checkpoint[CHECKPOINT] = self.spent()

    # -- a round ---------------------------------------------------------------------------------------------------------

    def _round(self, pl_module: Any) -> Tensor:
        """Ask the sites, and give Lightning a loss whose gradient is the mean of their updates."""
        number, parameters = int(pl_module.trainer.global_step), trained(pl_module)
        update, loss = self._mean(number, parameters)
        span = self.images * len(self.options.sites)
        if hasattr(pl_module, "images_seen"):
            pl_module.images_seen += span
        if loss is not None:
            pl_module.log("loss", loss, prog_bar=True, batch_size=max(span, 1))
        along = sum((p * update[name].to(p.device)).sum() for name, p in parameters.items())
        assert isinstance(along, Tensor)
        return along - along.detach() + (0.0 if loss is None else loss)

    def _mean(self, number: int, parameters: Mapping[str, nn.Parameter]) -> tuple[Tensors, float | None]:
        """Mean update of a round, and the sites' mean loss."""
        options, weights = self.options, {name: parameters[name].detach().cpu() for name in sorted(parameters)}
        asked = self.chosen(number)
        task = {
            "round": number, "first": number * self.images * len(options.sites), "images": self.images, "agreed": self.agreed,
            "facts": None if self.facts is None else self.facts.to_json(), "untrained": self.untrained,
        }  # fmt: skip
        messages = self.exchange(packed(weights, **task), asked) if asked else {}
        answers = {name: self._read(name, messages[name], number, weights) for name in asked if name in messages}
        self._check_enough(number, asked, answers)
        for name in answers:
            self.answers[name] += 1
        updates = [clipped(update, options.max_update_norm) for update, _ in answers.values()]
        shares = [1.0 if options.weights == "equal" else float(facts["images"]) for _, facts in answers.values()]
        nothing = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        if options.privacy is not None:
            # The sum over what is expected: dividing by how many answered would tell who did.
            expected = options.share_of_sites * len(options.sites)
            mean = mean_update(updates, shares, expected) if updates else nothing
            deviation = self.noise * float(options.max_update_norm or 0.0) / expected
            return noised(mean, deviation, secret_rng(self.key, f"sites/{number}")), None
        if not updates:
            return nothing, None
        losses, total = [float(facts["loss"]) for _, facts in answers.values()], sum(shares)
        return mean_update(updates, shares, total), sum(a * b for a, b in zip(losses, shares, strict=True)) / total

    def chosen(self, number: int) -> list[str]:
        """Sites that are asked in a round: each with probability ``share_of_sites``."""
        names = self.options.names
        return [names[row] for row in poisson_rows(self.key, number, len(names), self.options.share_of_sites)]

    def _read(
        self, name: str, answer: bytes, number: int, like: Mapping[str, Tensor]
    ) -> tuple[Tensors, dict[str, Any]]:
        """A site's update and facts, after all checks.

        Raises:
            DataError: what is not as it was asked for, all at once.
        """
        sender = f"site {name}"
        update, facts = unpacked(answer, sender)
        check_alike(update, like, sender)
        raise_all(f"the answer of {sender}", fact_problems(facts, name, number, self.options), DataError)
        if self.options.share_counts:
            self.counts[name] = dict(facts["counts"])
        return update, facts

    def _check_enough(self, number: int, asked: Sequence[str], answers: Mapping[str, Any]) -> None:
        missing = [name for name in asked if name not in answers]
        if not missing:
            return
        if self.options.privacy is not None:
            least = 1
        else:
            least = len(asked) if self.options.min_sites is None else min(self.options.min_sites, len(asked))
        if len(answers) < least:
            raise DataError(
                f"round {number}: {len(answers)} of {len(asked)} sites answered (missing: {', '.join(missing)}), {least} are needed. "
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
        """A resumed training is the one that it began as; only how long sites are waited for may change."""
        assert self._restored is not None
        before, now = self._restored, self.state_dict()
        # Which arguments of a module may change is decided where configurations are compared; a newer visynth may go on.
        keys = sorted({*before["agreed"], *now["agreed"]} - {"arguments", "visynth"})
        pairs = [(f"agreed.{key}", before["agreed"].get(key), now["agreed"].get(key)) for key in keys]
        pairs += [(key, before["options"].get(key), value) for key, value in now["options"].items() if key not in FREE]
        pairs.append(("noise", before["noise"], now["noise"]))
        changed = [f"{key}: {old!r} there, {new!r} here" for key, old, new in pairs if old != new]
        raise_all("the checkpoint's federated training is another one, which", changed, ConflictError)


class Rounds(pytorch_lightning.LightningDataModule):
    """Data of a server: none. Each batch is a round.

    Args:
        facts: of the sites' data, as far as all share them.
    """

    def __init__(self, facts: Any = None) -> None:
        super().__init__()
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
