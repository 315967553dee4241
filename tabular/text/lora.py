"""Fine-tuning of a local language model on real texts: low-rank weights by Lightning, kept as the product's artifact.

What is learned is the reply to the job's own prompt, so that the same job asks for it later. The model itself stays as it is and
where it is; the artifact (schema ``visynth.text/1``, network ``lora``) holds the low-rank weights and says which model they are of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from visynth.core.artifact import Artifact
from visynth.core.errors import IntegrityError, UsageError, raise_all
from visynth.core.members import Member
from visynth.core.progress import Progress, no_progress
from visynth.tabular.stored import Stored, packed
from visynth.tabular.text.generator import SCHEMA
from visynth.tabular.text.losses import mean_losses
from visynth.tabular.text.lowrank import LowRank, attach, merge, peft_files, put_in
from visynth.tabular.text.models import LanguageModel, load_model
from visynth.tabular.text.private import CARD, TextPrivacy
from visynth.tabular.text.prompts import Prompt
from visynth.tabular.text.talks import Talk, encoded
from visynth.tabular.training import Batch, GradientSteps, default_trainer

HELD = "held out by hash (share, seed)"  # entry of the card
PASSES = 3  # over the texts, where steps are not given


@dataclass(frozen=True)
class Lesson:
    """How texts are asked for while they are learned. A job should ask in the same way.

    Attributes:
        prompt: of the job.
        shown: other real texts in it.
        meanings: of the classes.
    """

    prompt: Prompt
    shown: int = 0
    meanings: Mapping[str, str] = field(default_factory=dict)


class TextLoRA(Stored, GradientSteps):
    """Low-rank weights that make a language model write like some real texts.

    Args:
        rank: of the weights.
        alpha: their scale is alpha / rank.
        targets: layers that get them, such as q_proj; by default every linear layer but the last.
        steps: of the optimiser; by default three passes over the texts.
        batch_size: texts of a step.
        lr: AdamW's highest learning rate.
        ema: of the average of the weights.
        bfloat16: whether the frozen model is held in 16 bits (half the memory).
        seed: of everything random.

    Attributes:
        base: hex sha256 of the weights of the model that was fine-tuned.
        lesson: what the texts were learned as replies to.
        classes: of the texts.
        members: one fingerprint for each text that was learned.
        notes: what people should know.
        passes: that the training made over the texts.
        spent: of privacy; empty without.
        held_out: share and seed by which texts were held out, each by itself; None where fingerprints say it.

    Raises:
        UsageError: numbers that cannot be.
    """

    network: ClassVar[str] = "lora"

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = (),
        steps: int | None = None,
        batch_size: int = 8,
        lr: float = 2e-4,
        ema: float = 0.9,
        bfloat16: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        LowRank(rank, alpha, targets)
        problems = [
            f"{name} must be {what}, but got {value}"
            for name, what, value, good in (
                ("steps", "at least 1", steps, steps is None or steps >= 1),
                ("batch_size", "at least 1", batch_size, batch_size >= 1),
                ("lr", "above 0", lr, lr > 0),
                ("ema", "in [0, 1)", ema, 0 <= ema < 1),
            )
            if not good
        ]
        raise_all("the fine-tuning", problems, UsageError)
        targets = list(targets)
        self.save_hyperparameters()
        self._wanted_steps, self._where = steps, torch.device("cpu")
        self._language: LanguageModel | None = None
        self._kept: dict[str, Tensor] = {}
        self.passes = 0.0
        self.spent: dict[str, Any] = {}
        self.held_out: tuple[float, int] | None = None
        self._names: list[str] = []
        self.lesson, self.base = Lesson(Prompt("?")), ""
        self.classes: tuple[str, ...] = ()
        self.members: tuple[Member, ...] = ()
        self.notes: tuple[str, ...] = ()

    # -- training ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        model: str | Path | LanguageModel,
        talks: Sequence[Talk],
        *,
        lesson: Lesson,
        classes: Sequence[str] = (),
        members: Sequence[Member] = (),
        notes: Sequence[str] = (),
        privacy: TextPrivacy | None = None,
        held_out: tuple[float, int] | None = None,
        progress: Progress = no_progress,
        **training: Any,
    ) -> Self:
        """Train on talks.

        Args:
            model: folder or GGUF file of the model; one that is loaded already is changed in place.
            talks: prompts, and the real texts as replies.
            lesson: how the talks were made.
            classes: of the texts.
            members: fingerprints of the texts.
            notes: what people should know.
            privacy: with differential privacy: the weights hardly depend on any one text, and no fingerprints are kept.
            held_out: share and seed by which other texts of the same file were held out, each by itself; instead of fingerprints.
            progress: receives lines.
            training: ``trainer=`` and ``checkpoint=``.

        Raises:
            UsageError: no such model, one without the layers that are asked for, or too few steps to see every text.
            DataError: texts that are all too long.
            Diverged: a loss that is not a number.
        """
        self._digest = None
        if privacy is not None:
            privacy.check(classes, lesson.shown)
            classes, members = privacy.classes, ()
        self._language = model if isinstance(model, LanguageModel) else load_model(model)
        self.lesson, self.base, self.classes = lesson, self._language.digest, tuple(classes)
        arrays, long = encoded(self._language, talks)
        gone = {talks[place].number for place in long}
        self.members = tuple(member for place, member in enumerate(members) if place not in gone)
        left_out = [f"{len(long)} texts are too long and were left out"] if long else []
        for note in (*notes, *left_out):
            progress(f"  {note}")
        self.notes = (*notes, *(left_out if privacy is None else ()))
        self._plan_steps(len(arrays["ids"]))
        callback = None if privacy is None else privacy.training()
        if callback is not None:
            trainer: Any = training.pop("trainer", None) or default_trainer()
            trainer.callbacks.append(callback)
            training["trainer"] = trainer
        self.train_on(arrays, progress, **training)
        self.spent = {} if callback is None else callback.record()
        self.held_out = held_out
        self._language.model.to(self._where)  # Lightning has moved what it trained
        with torch.no_grad():
            for own, average in zip(self.net.parameters(), self.average.parameters(), strict=True):
                own.copy_(average)
        self._kept = dict(zip(self._names, [p.detach().cpu() for p in self.net.parameters()], strict=True))
        return self

    def _plan_steps(self, rows: int) -> None:
        """Three passes by default, and at least one: what was never seen would count as learned."""
        size = min(int(self.args.batch_size), rows)
        if self._wanted_steps is None:
            self.hparams["steps"] = math.ceil(PASSES * rows / size)
        least = math.ceil(rows / size)
        if int(self.args.steps) < least:
            raise UsageError(f"{self.args.steps} steps of {size} texts do not see all {rows}: take at least {least}.")
        self.passes = int(self.args.steps) * size / rows

    @property
    def language(self) -> LanguageModel:
        """The model with its low-rank weights, after a fit."""
        if self._language is None:
            raise UsageError("the fine-tuning holds no language model: fit it, or load it into one with with_adapter.")
        return self._language

    @property
    def settings(self) -> LowRank:
        return LowRank(int(self.args.rank), float(self.args.alpha), tuple(self.args.targets))

    def build(self) -> nn.Module:
        model = self.language.model
        if self.args.bfloat16:
            model.to(torch.bfloat16)
        weights = attach(model, self.settings)
        self._names = list(weights)
        return nn.ParameterList(weights.values())

    def private_part(self) -> nn.Module:
        """Where the low-rank weights meet the texts; the rest of the language model stays in eval mode."""
        model: nn.Module = self.language.model
        for layer in model.modules():
            if any(p.requires_grad for p in layer.parameters(recurse=False)):
                layer.train()
        return model

    def on_fit_start(self) -> None:
        # The frozen model is no part of this module, so that neither checkpoints nor averages hold it.
        self._where = self.device
        self.language.model.to(self._where)

    def loss(self, batch: Batch) -> Tensor:
        return mean_losses(self.language.model, batch["ids"], batch["first"], batch["length"]).mean()

    # -- storing -----------------------------------------------------------------------------------------------------

    @property
    def card(self) -> dict[str, Any]:
        """What people are told of it."""
        return {
            "task": "synthetic text",
            **({CARD: dict(self.spent)} if self.spent else {"real texts": len(self.members)}),
            **({HELD: list(self.held_out)} if self.held_out else {}),
            "notes": list(self.notes),
            "privacy": "see 'differential privacy'"
            if self.spent
            else "without differential privacy; the weights may repeat texts that they learned",
            "licence": "as the real texts, and as the language model's terms allow",
            "made by": "visynth text fit",
        }

    def artifact(self) -> Artifact:
        hparams = {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in dict(self.hparams).items()}
        identity = {
            "schema": SCHEMA, "network": self.network, "classes": list(self.classes), "hparams": hparams,
            "base": self.base, "lesson": asdict(self.lesson),
        }  # fmt: skip
        return Artifact(identity, packed(self._kept), self.members, self.card)

    def _readme(self, digest: str) -> str:
        notes = "".join(f"- {note}\n" for note in self.notes) or "- none\n"
        trained, shared = f"Trained on {len(self.members)} real texts.", "share them as you would share the texts"
        if self.spent:
            epsilon, delta = self.spent["epsilon"], self.spent["delta"]
            trained = f"Trained with differential privacy: epsilon {epsilon:.3g} at delta {delta:g} for each text."
            shared = "how likely that is, epsilon says; whoever wrote several texts is protected less"
        return (
            f"# Low-rank weights of a language model\n\nDigest: `{digest}`. {trained}\n\n"
            f"Of the model whose weights have sha256 `{self.base}`.\n\nNotes:\n\n{notes}\n"
            "Intended use: `visynth text ... --backend local --model MODEL --adapter FOLDER`, for training data. The weights may "
            f"repeat what they learned: {shared}.\n"
        )

    def save(self, folder: str | Path, called: str = "") -> Path:
        """Write the generator folder, which peft, vLLM and others read as an adapter, too; it appears complete or not at all.

        Args:
            folder: of the generator.
            called: what the language model is called in the adapter's configuration, such as its path.
        """
        stored = self.artifact()
        return stored.save(folder, self._readme(stored.digest), peft_files(self.settings, self._kept, called))

    @classmethod
    def from_artifact(cls, stored: Artifact, device: str = "cpu") -> Self:
        """The fine-tuning that an artifact holds; the language model is not read."""
        from safetensors.torch import load

        said = stored.identity
        own = cls(**said["hparams"])
        lesson = said["lesson"]
        own.lesson = Lesson(Prompt(**lesson["prompt"]), lesson["shown"], lesson["meanings"])
        own.base, own.classes = said["base"], tuple(said["classes"])
        own.members, own.notes = stored.members, tuple(stored.card.get("notes", ()))
        own.spent = dict(stored.card.get(CARD, {}))
        own.held_out = tuple(stored.card[HELD]) if HELD in stored.card else None
        own._kept = load(stored.weights)
        return own

    def put_into(self, model: LanguageModel) -> LanguageModel:
        """A language model with these weights merged into its own; the one that is given is changed in place.

        Raises:
            IntegrityError: the weights are of another model.
        """
        self.check_base(model)
        put_in(model.model, self.settings, self._kept)
        merge(model.model)
        marks = frozenset(member.sha256 for member in self.members)
        return LanguageModel(model.model, model.tokenizer, model.path, self.digest, marks)

    def check_base(self, model: LanguageModel) -> None:
        """Refuse another model than the one that was fine-tuned.

        Raises:
            IntegrityError: it is another one.
        """
        if model.digest != self.base:
            raise IntegrityError(
                f"the low-rank weights are of a model whose weights have sha256 {self.base[:16]}..., but {model.path} has "
                f"{model.digest[:16]}...: give the model that was fine-tuned."
            )


def load_adapter(folder: str | Path) -> TextLoRA:
    """Low-rank weights from their folder on this machine.

    Raises:
        UsageError: there is no such folder.
        IntegrityError: it was altered, or holds something else.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"there is no adapter at {folder}: give the folder generator/ that 'visynth text fit' wrote.")
    return TextLoRA.load(folder)


def with_adapter(path: str | Path, adapter: str | Path, device: str = "cpu") -> LanguageModel:
    """A language model from its files, with low-rank weights.

    Raises:
        UsageError: there is no such model.
        IntegrityError: the adapter was altered, or is of another model.
    """
    weights = load_adapter(adapter)
    return weights.put_into(load_model(path, device))
