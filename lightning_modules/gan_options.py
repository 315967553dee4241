"""Arguments that every adversarial training has, checked before anything is built."""

from __future__ import annotations

from typing import Any, get_args

from visynth.core.errors import UsageError, choices
from visynth.lightning_modules.adversarial import LOSSES
from visynth.lightning_modules.latents import Augment
from visynth.networks import ada, diffaugment

AUGMENTS = get_args(Augment)
PRECISIONS = ("32-true", "bf16-mixed", "64-true")


def check(name: str, generator: Any, o: Any) -> None:
    """Refuse arguments of an adversarial module, and sampler options of its generator, that cannot be right, all of
    them told.

    Raises:
        UsageError: any of them.
    """
    problems = []
    if o.loss not in LOSSES:
        problems.append(f"loss must be one of {choices(LOSSES)}, but got {o.loss!r}")
    if o.augment not in AUGMENTS:
        problems.append(f"augment must be one of {choices(AUGMENTS)}, but got {o.augment!r}")
    known = {"ada": (*ada.GROUPS, *ada.KINDS), "diffaugment": diffaugment.KINDS}.get(o.augment, ())
    unknown = [kind for kind in o.augment_kinds or [] if kind not in known]
    if unknown and known:
        problems.append(f"augment_kinds {choices(unknown)} are unknown; {o.augment} has {choices(known)}")
    if not 0 <= o.augment_p <= ada.HIGHEST:
        problems.append(
            f"augment_p must be in [0, {ada.HIGHEST}] (more leaks into what is made), but got {o.augment_p}"
        )
    if o.ada_target is not None and not -1 < o.ada_target < 1:
        problems.append(f"ada_target must be in (-1, 1) or null, but got {o.ada_target}")
    for what in ("lr_g", "lr_d", "ada_kimg"):
        if getattr(o, what) <= 0:
            problems.append(f"{what} must be above 0, but got {getattr(o, what)}")
    for what in ("lecam", "ema_rampup"):
        if getattr(o, what) < 0:
            problems.append(f"{what} must be at least 0, but got {getattr(o, what)}")
    for what in ("kimg", "ema_kimg"):
        if getattr(o, what) is not None and getattr(o, what) <= 0:
            problems.append(f"{what} must be above 0 or null, but got {getattr(o, what)}")
    if o.gamma is not None and o.gamma < 0:
        problems.append(f"gamma must be at least 0 or null, but got {o.gamma}")
    for what in ("accumulate", "r1_every", "d_steps"):
        if getattr(o, what) < 1:
            problems.append(f"{what} must be at least 1, but got {getattr(o, what)}")
    if len(o.betas) != 2 or not all(0 <= beta < 1 for beta in o.betas):
        problems.append(f"betas must be two numbers in [0, 1), but got {o.betas}")
    if o.lecam and o.loss == "relativistic":
        problems.append(
            "lecam is about the logits of real and synthetic images themselves, and relativistic only about their "
            "difference: take one of them"
        )
    if o.micro_batch < 1:
        problems.append(f"micro_batch must be at least 1, but got {o.micro_batch}")
    if o.augment == "none" and o.augment_kinds:
        problems.append("augment_kinds say what augment='none' never does: take 'ada' or 'diffaugment'")
    if o.augment_kinds == []:
        problems.append("augment_kinds is empty: leave it out, or take augment='none'")
    unknown = [option for option in o.sampler or {} if option not in generator.options]
    if unknown:
        problems.append(f"sampler options {choices(unknown)} are unknown; there are {choices(generator.options)}")
    if o.freeze < 0:
        problems.append(f"freeze must be at least 0, but got {o.freeze}")
    if problems:
        raise UsageError(f"{name}: " + "; ".join(problems) + ".")
    generator.check_options({**generator.options, **(o.sampler or {})})


def private_problems(hparams: Any) -> list[str]:
    """Arguments by which a training with differential privacy, of the discriminator's gradients, would not be private."""
    problems = []
    if hparams.gamma != 0 or hparams.r2:
        problems.append(
            "penalties on the discriminator's gradient are differentiated twice, which cannot be done row by row: set gamma: 0 and "
            "r2: false"
        )
    if hparams.kimg is not None:
        problems.append(
            "kimg ends a training by images shown, and differential privacy by steps: leave kimg (and transition) out"
        )
    if hparams.lecam:
        problems.append("lecam follows a running mean of the real images' logits: set lecam: 0")
    if hparams.augment == "ada" and hparams.ada_target is not None:
        problems.append(
            "augment 'ada' follows the logits of real images: set augment: diffaugment, or ada_target: null"
        )
    if hparams.loss == "relativistic":
        problems.append("the generator of loss 'relativistic' looks at real images: take non_saturating or hinge")
    if hparams.accumulate != 1:
        problems.append(f"accumulate {hparams.accumulate} gives noise to each part: take 1, and a larger batch_size")
    if getattr(hparams, "group", 1) != 1:
        problems.append("minibatch standard deviation mixes the images of a batch: set group: 1")
    return problems


def check_trainer(name: str, trainer: Any) -> None:
    """Refuse a trainer that does not suit an adversarial training.

    Raises:
        UsageError: half precision, or accumulation and clipping by Lightning, which has them for one optimiser alone.
    """
    problems = []
    if trainer.precision not in PRECISIONS:
        problems.append(
            f"precision must be one of {choices(PRECISIONS)} (half precision would need scaled losses), but is "
            f"{trainer.precision!r}"
        )
    if trainer.accumulate_grad_batches > 1:
        count = trainer.accumulate_grad_batches
        problems.append(
            f"accumulate_grad_batches={count} is for one optimiser, and here are two: give the model "
            f"accumulate={count} instead"
        )
    if trainer.gradient_clip_val:
        problems.append(
            f"gradient_clip_val={trainer.gradient_clip_val:g} is for one optimiser: leave it out, the gradient penalty "
            "(gamma) keeps gradients small"
        )
    if problems:
        raise UsageError(f"{name}: the trainer's " + "; ".join(problems) + ".")
