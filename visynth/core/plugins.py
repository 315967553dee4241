"""Registered names -> classes: the only place where visynth imports by string.

A name comes from the built-in table or from another package's entry point in the groups
``visynth.generators``, ``visynth.synthesizers`` (of tables), ``visynth.series``, ``visynth.writers`` (of text),
``visynth.features``, ``visynth.learners``, ``visynth.trainers``, ``visynth.renderers``, ``visynth.filters`` (of rendered
images) and ``visynth.commands``.
Folders of ours store the *name*, never an import path, so loading a generator runs only code that was installed on
purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from typing import Any

from visynth.core.errors import UsageError, choices

BUILT_IN: dict[str, dict[str, str]] = {
    "generators": {
        "compose": "visynth.generators.compose:Composition",
        "diffusion": "visynth.generators.diffusion:Diffusion",
        "inpaint": "visynth.generators.inpainting:Inpainting",
        "foundation": "visynth.generators.foundation:Foundation",
        "stylegan2": "visynth.generators.gan:StyleGAN2",
        "biggan": "visynth.generators.gan:BigGAN",
        "cgan": "visynth.generators.gan:CGAN",
        "stylegan2_projected": "visynth.generators.projection:ProjectedStyleGAN2",
    },
    "features": {
        "efficientnet_lite0": "visynth.metrics.extractors:efficientnet_lite0",
        "inception_v3": "visynth.metrics.extractors:inception_v3",
        "dinov2": "visynth.metrics.extractors:dinov2",
    },
    "learners": {
        "frozen": "visynth.verdict.frozen:FrozenLearner",
        "finetune": "visynth.lightning_modules.classifier:FinetuneLearner",
    },
    "trainings": {
        "learner": "visynth.jobs.user_training:UserTraining",
        "encoder": "visynth.lightning_modules.encoder:train_encoder",
    },
    "synthesizers": {
        "masked": "visynth.tabular.masked:Masked",
        "ctgan": "visynth.tabular.gan:CTGAN",
        "tvae": "visynth.tabular.vae:TVAE",
        "diffusion": "visynth.tabular.diffusion:Diffusion",
        "copula": "visynth.tabular.counting:GaussianCopula",
        "marginals": "visynth.tabular.counting:IndependentMarginals",
        "dp_aim": "visynth.tabular.aim:AIM",
        "dp_marginals": "visynth.tabular.dp_marginals:PrivateMarginals",
        "oversampler": "visynth.tabular.oversampler:Oversampler",
    },
    "series": {
        "bootstrap": "visynth.tabular.timeseries.baselines:WindowBootstrap",
        "independent": "visynth.tabular.timeseries.baselines:IndependentChannels",
        "vae": "visynth.tabular.timeseries.vae:TimeVAE",
        "diffusion": "visynth.tabular.timeseries.diffusion:SeriesDiffusion",
        "ar": "visynth.tabular.timeseries.autoregressive:SeriesAR",
    },
    "writers": {
        "text": "visynth.tabular.text.generator:TextGenerator",
        "lora": "visynth.tabular.text.lora:TextLoRA",
    },
    "trainers": {
        "diffusion": "visynth.lightning_modules.trainers:train_diffusion",
        "inpaint": "visynth.lightning_modules.trainers:train_inpainting",
        "projection": "visynth.lightning_modules.trainers:train_projection",
    },
    "renderers": {
        "visynth.renders/2": "visynth.render.images:ImageMaker",
        "visynth.rows/2": "visynth.tabular.render:TableMaker",
    },
    "plans": {
        "visynth.renders/2": "visynth.render.plan:RenderPlan",
        "visynth.rows/2": "visynth.tabular.render:TablePlan",
    },
    "subjects": {
        "images": "visynth.jobs.retrain.images:ImageSubject",
        "tables": "visynth.tabular.retraining:TableSubject",
    },
    "filters": {"near_duplicates": "visynth.render.filters:NearDuplicates"},
    "commands": {},
}


def names(group: str) -> list[str]:
    """Names registered in a group, built-in and installed ones together.

    Example:
        >>> "compose" in names("generators")
        True
    """
    return sorted({*_table(group), *_installed(group)})


def load(group: str, name: str) -> Any:
    """The object that a name stands for.

    Raises:
        UsageError: the name is not registered; the message lists those that are.

    Example:
        >>> load("generators", "compose").__name__
        'Composition'
    """
    table = _table(group)
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module), attribute)
    installed = _installed(group)
    if name in installed:
        return installed[name].load()
    raise UsageError(
        f"{group} has no {name!r}; registered are {choices(names(group))}. Another package can add one by an entry "
        f"point in 'visynth.{group}'."
    )


def check_arguments(kind: type, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a class has not.

    Raises:
        UsageError: all of them, with those that it has.

    Example:
        >>> check_arguments(EntryPoint, {"nane": "x"})
        Traceback (most recent call last):
        visynth.core.errors.UsageError: EntryPoint has no argument 'nane'; it has 'name', 'value', 'group'.
    """
    own = signature(kind).parameters
    unknown = [name for name in arguments if name not in own]
    if unknown and not any(p.kind == Parameter.VAR_KEYWORD for p in own.values()):
        raise UsageError(f"{kind.__name__} has no argument {choices(unknown)}; it has {choices(own)}.")


def make(group: str, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """An instance of the class that a name stands for, with arguments that people gave.

    Raises:
        UsageError: the name is not registered, or the class has no such arguments.
    """
    kind = load(group, name)
    check_arguments(kind, arguments or {})
    return kind(**(arguments or {}))


def _table(group: str) -> dict[str, str]:
    if group not in BUILT_IN:
        raise UsageError(f"plugin group must be one of {choices(BUILT_IN)}, but got {group!r}.")
    return BUILT_IN[group]


def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"visynth.{group}")}
