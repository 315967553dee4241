"""The user's own training, with the new images and without: what a generator is for, in the user's own numbers.

The training is a configuration of LightningCLI (``model`` and ``data`` by ``class_path``), the one that ``visynth fit``
takes. It is trained twice from the same seed, on its own DataModule as it is and on the same one wrapped by
:class:`visynth.WithSynthetic`, and tested by its own test step on its own test data, as is the module of the champion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from visynth.core.child import run_command
from visynth.core.errors import UsageError, VisynthError, choices
from visynth.core.files import hash_file, hash_json, readable_json
from visynth.core.folders import put_files
from visynth.core.members import Member
from visynth.core.progress import Progress, no_progress
from visynth.core.quiet import quiet_lightning
from visynth.jobs.registry.contents import DOWNSTREAM
from visynth.mixing.leaks import check_leaks
from visynth.mixing.wrapper import held_out
from visynth.verdict.challenge import Pair

# Beside a generator in its version:
MODEL, CONFIG, NUMBERS = "model.ckpt", "training.yaml", "numbers.json"
ENDS = ("max_steps", "max_epochs", "max_time")


@dataclass(frozen=True)
class Downstream:
    """A user's training that is judged with a generator.

    Args:
        config: its LightningCLI file, with ``model``, ``data`` and a ``trainer`` that ends.
        metric: logged by its test step.
        mode: whether more (``max``) or less is better.
        margin: how much worse it may be than without synthetic images, and than the champion's.
        seeds: repetitions; one is a single number without an interval.
        mixing: further arguments of :class:`visynth.WithSynthetic`, such as ``{share: 0.3}``.

    Raises:
        UsageError: no such file, or one that lacks a part.
    """

    config: str
    metric: str
    mode: Literal["max", "min"] = "max"
    margin: float = 0.0
    seeds: int = 1
    mixing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not Path(self.config).is_file():
            raise UsageError(f"downstream: there is no configuration {self.config}.")
        if self.mode not in ("max", "min") or self.margin < 0 or self.seeds < 1:
            raise UsageError(
                "downstream: mode must be max or min, margin at least 0 and seeds at least 1, but got "
                f"{self.mode!r}, {self.margin} and {self.seeds}."
            )
        parts = self.parts()
        lacking = [name for name in ("model", "data") if "class_path" not in (parts.get(name) or {})]
        if lacking:
            raise UsageError(f"downstream: {self.config} has no class_path in {choices(lacking)}.")
        if not any((parts.get("trainer") or {}).get(name) for name in ENDS):
            raise UsageError(f"downstream: the trainer of {self.config} never ends: give one of {choices(ENDS)}.")

    def parts(self) -> dict[str, Any]:
        """The configuration as it is written."""
        try:
            found = yaml.safe_load(Path(self.config).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UsageError(f"downstream: {self.config} is no YAML: {error}") from error
        return dict(found) if isinstance(found, dict) else {}

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "mixing": dict(self.mixing), "hash": hash_file(Path(self.config))}


def downstream_of(given: Mapping[str, Any]) -> Downstream:
    """From a dictionary, as a command line or a file has it.

    Raises:
        UsageError: parts are missing or unknown, or see :class:`Downstream`.
    """
    known = [one.name for one in fields(Downstream)]
    wrong = [f"{name!r} is unknown" for name in given if name not in known]
    wrong += [f"{name} is missing" for name in ("config", "metric") if name not in given]
    if wrong:
        raise UsageError(f"downstream: {'; '.join(wrong)}; its parts are {choices(known)}.")
    return Downstream(**given)


def written(downstream: Downstream, folder: Path, seed: int, renders: Path | None) -> bytes:
    """The configuration of one training.

    Args:
        downstream: what is trained.
        folder: of the run.
        seed: of everything that the training draws.
        renders: the synthetic images, or None: the training as it is.
    """
    parts = downstream.parts()
    # As the user's Trainer is; ours clips gradients.
    trainer = {"gradient_clip_val": None, **parts["trainer"], "default_root_dir": str(folder)}
    parts |= {"trainer": trainer, "seed_everything": seed}
    if renders is not None:
        arguments = {"datamodule": parts["data"], "source": str(renders), "seed": seed, **downstream.mixing}
        parts["data"] = {"class_path": "visynth.WithSynthetic", "init_args": arguments}
    return str(yaml.safe_dump(parts, sort_keys=False)).encode()


def check_downstream(downstream: Downstream, members: Sequence[Member], folder: Path) -> None:
    """Test one batch with the untrained module, so that what is wrong is told before anything is trained.

    Args:
        downstream: what will be trained.
        members: images that the generator will be fitted on; the training may not be tested on one of them.
        folder: to work in.

    Raises:
        UsageError: the configuration is wrong, or the test step does not log the metric.
        DataError: images that the training is tested on are among the members.
    """
    folder.mkdir(parents=True, exist_ok=True)
    put_files(folder, {"check.yaml": written(downstream, folder, 0, None)})
    cli, _ = _tested(folder / "check.yaml", None, downstream.metric, limit_test_batches=1)
    cli.datamodule.setup("fit")
    check_leaks(members, held_out(cli.datamodule, None, set()), downstream.mixing.get("accept_leaks"))


def train_pair(
    downstream: Downstream, renders: Path, champion: Path | None, folder: Path, progress: Progress = no_progress
) -> Pair:
    """Train with and without synthetic images, test both and the champion's module, and decide.

    Args:
        downstream: what is trained.
        renders: the challenger's images.
        champion: folder of the champion's version, which may have a module.
        folder: of this work; trainings in it go on where they were stopped.
        progress: receives lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[float]] = {"real": [], "with synthetic": []}
    for seed in range(downstream.seeds):
        for arm, source in (("real", None), ("with synthetic", renders)):
            progress(f"downstream training {seed + 1} of {downstream.seeds}: {arm}")
            run = folder / f"{arm.replace(' ', '-')}-{seed}"
            scores[arm].append(_trained(downstream, run, seed, source))
    notes: list[str] = []
    if champion is not None and (champion / DOWNSTREAM / MODEL).is_file():
        try:
            scores["champion"] = [_tested(folder / "real-0.yaml", champion / DOWNSTREAM / MODEL, downstream.metric)[1]]
        except (VisynthError, RuntimeError, KeyError) as error:
            notes.append(f"the champion's module does not fit this training and is not compared ({_first(error)})")
    means = {arm: sum(own) / len(own) for arm, own in scores.items()}
    better, reasons = decide(downstream, means)
    numbers = {"metric": downstream.metric, "mode": downstream.mode, "scores": scores}
    put_files(folder, {CONFIG: Path(downstream.config).read_bytes(), NUMBERS: readable_json(numbers)})
    files = {
        MODEL: folder / "with-synthetic-0" / MODEL,
        CONFIG: folder / CONFIG,
        NUMBERS: folder / NUMBERS,
    }
    return Pair(better, [*reasons, *notes], numbers, files)


def decide(downstream: Downstream, means: Mapping[str, float]) -> tuple[bool, list[str]]:
    """Whether a module is to be used, and why.

    Args:
        downstream: with mode and margin.
        means: of the metric, by arm: ``"real"``, ``"with synthetic"`` and perhaps ``"champion"``.
    """
    sign = 1.0 if downstream.mode == "max" else -1.0
    new = means["with synthetic"]
    shown = ", ".join(f"{arm} {value:.4g}" for arm, value in means.items())
    runs = "one training each, no interval" if downstream.seeds == 1 else f"means of {downstream.seeds} trainings"
    reasons = [f"{downstream.metric} of your own training: {shown} ({runs})"]
    if not all(map(math.isfinite, means.values())):
        return False, [*reasons, "a score is not finite"]
    for arm, value in means.items():
        if arm != "with synthetic" and sign * (new - value) < -downstream.margin:
            reasons.append(
                f"worse than {arm} by more than {downstream.margin:g}: generator and module stay as they are"
            )
            return False, reasons
    return True, reasons


def _trained(downstream: Downstream, run: Path, seed: int, renders: Path | None) -> float:
    """Train, or go on, and test; gives the metric and leaves ``model.ckpt``. What was done before is not done again."""
    text = written(downstream, run, seed, renders)
    config, done = run.with_name(f"{run.name}.yaml"), run.with_name(f"{run.name}.json")
    key = hash_json([text.decode(), downstream.metric])
    if done.is_file():
        before = json.loads(done.read_text(encoding="utf-8"))
        if before["training"] == key and before["model"] == hash_file(run / MODEL):
            return float(before["score"])
    put_files(run.parent, {config.name: text})
    code = run_command(["fit", "-c", str(config)])
    if code:
        raise SystemExit(code)
    cli, score = _tested(config, _best(run), downstream.metric)
    cli.trainer.save_checkpoint(run / MODEL, weights_only=True)
    found = {"training": key, "model": hash_file(run / MODEL), "score": score}
    put_files(run.parent, {done.name: readable_json(found)})
    return score


def _best(run: Path) -> Path:
    """What the user's own ModelCheckpoint found best, else the last state."""
    import torch

    from visynth.callbacks.checkpoint import KeepLast, verified

    last = verified(KeepLast.path(run))
    stored = torch.load(last, map_location="cpu", weights_only=True)
    for name, state in stored.get("callbacks", {}).items():
        best = state.get("best_model_path") if name.startswith("ModelCheckpoint") else None
        if best and state.get("monitor") and Path(best).is_file():
            return Path(best)
    return last


@quiet_lightning()
def _tested(config: Path, checkpoint: Path | None, metric: str, **trainer: Any) -> tuple[Any, float]:
    """The trainer with its module and data, and the metric."""
    from visynth.jobs.configured import configured

    words = ["-c", str(config), "--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    words += [word for name, value in trainer.items() for word in (f"--trainer.{name}", str(value))]
    cli = configured(words, logger=False)
    try:
        logged = cli.trainer.test(
            cli.model,
            cli.datamodule,
            ckpt_path=None if checkpoint is None else str(checkpoint),
            verbose=False,
            weights_only=True,
        )
    except Exception as error:
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        if isinstance(error, MisconfigurationException):
            raise UsageError(f"downstream: {error}") from error
        raise
    found = {name: value for one in logged for name, value in one.items()}
    if metric not in found:
        raise UsageError(f"downstream: the test step logs {choices(found)}, and no {metric!r}.")
    return cli, float(found[metric])


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
