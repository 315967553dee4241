"""What breaks the guarantee of a private training, with the reason and what to do instead."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from visynth.privacy.adversary import Adversary


def trainer_problems(trainer: Any) -> list[str]:
    """Options of a Trainer, and its callbacks, that use the data without paying for it."""
    problems = []
    if trainer.gradient_clip_val is not None:
        problems.append(
            f"gradient_clip_val {trainer.gradient_clip_val} clips the noised sum: set gradient_clip_val: null; max_grad_norm "
            "clips each unit's gradient"
        )
    if trainer.accumulate_grad_batches != 1:
        problems.append(
            f"accumulate_grad_batches {trainer.accumulate_grad_batches} adds noise to each part: take 1, a larger batch_size, "
            "and physical_batch_size for the memory"
        )
    if trainer.world_size > 1:
        problems.append(
            f"{trainer.world_size} processes draw {trainer.world_size} samples of which one is counted: take devices: 1"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        problems.append(
            "precision 16-mixed leaves steps out where a gradient overflows, by the data: take bf16-mixed or 32"
        )
    if str(trainer.precision) in ("bf16-true", "16-true"):
        problems.append(f"precision {trainer.precision} rounds what is clipped and the noise: take bf16-mixed or 32")
    if trainer.overfit_batches:
        problems.append("overfit_batches chooses rows: leave it out")
    return problems + looking_problems(trainer)


def looking_problems(trainer: Any) -> list[str]:
    """What of a Trainer looks at private data beside the training itself."""
    problems = []
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if trainer.limit_val_batches != 0 and source.instance is not None and source.is_defined():
        problems.append("validation on private data is a release without a budget: set limit_val_batches: 0")
    for callback in trainer.callbacks:
        name, kinds = (
            type(callback).__name__,
            {kind.__name__ for kind in type(callback).__mro__},
        )  # of both Lightning packages
        if "EarlyStopping" in kinds or getattr(callback, "stop", False) is True:
            problems.append(f"{name} stops by a figure of the private data, without a budget: fix the steps")
        elif "GradientAccumulationScheduler" in kinds:
            problems.append(f"{name} adds noise to each part of a sum: leave it out")
        elif "ModelCheckpoint" in kinds and callback.monitor is not None:
            problems.append(f"{name} chooses by {callback.monitor!r}, a figure of the private data: leave monitor out")
        elif getattr(callback, "reads_real_images", False):
            problems.append(f"{name} measures against the private images, without a budget: leave it out")
    return problems


def module_problems(module: Any) -> list[str]:
    """Kinds of training that the callback cannot make private; modules tell their own by ``privacy_problems()``."""
    problems = list(module.privacy_problems()) if hasattr(module, "privacy_problems") else []
    if not module.automatic_optimization and not isinstance(module, Adversary):
        problems.append(
            f"{type(module).__name__} takes its optimiser's steps itself: automatic optimisation with one optimiser is made private "
            "(diffusion, classifiers, LoRA, tables by gradient steps), and GANs whose discriminator alone sees real images"
        )
    return problems


def layer_problems(module: nn.Module) -> list[str]:
    """Layers that mix rows, so that one unit's gradient is not its own."""
    mixing = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        and layer.training
        and (layer.track_running_stats or isinstance(layer, nn.modules.batchnorm._BatchNorm))
    ]
    derived = [
        name
        for name, layer in module.named_modules()
        if parametrize.is_parametrized(layer) and any(p.requires_grad for p in layer.parameters())
    ]
    problems = []
    if mixing:
        problems.append(
            f"BatchNorm and running statistics mix the rows of a batch ({_shown(mixing)}): take GroupNorm or LayerNorm, or put these "
            "layers in eval mode"
        )
    if derived:
        problems.append(
            f"parametrised weights, as spectral normalisation has, give no gradients row by row ({_shown(derived)}): take plain layers "
            "(of the GANs: CGAN, and StyleGAN2 with its residual discriminator)"
        )
    return problems


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def schedule_problems(schedule: Any) -> list[str]:
    """A learning rate that follows a figure of the private data."""
    config = schedule if isinstance(schedule, dict) else {"scheduler": schedule}
    name = type(config.get("scheduler")).__name__
    if name == "ReduceLROnPlateau" or config.get("reduce_on_plateau"):
        return [f"{name} follows a figure of the private data, without a budget: take a fixed schedule"]
    return []


def loader_problems(loader: Any) -> list[str]:
    """Loaders that are not replaced by Poisson samples, because they choose rows in a way that is not counted."""
    if not isinstance(loader, DataLoader):
        return [f"the training loader is a {type(loader).__name__}: one torch DataLoader is made private"]
    if isinstance(loader.dataset, IterableDataset):
        return [f"{type(loader.dataset).__name__} has no length: rows are drawn by chance from a dataset that has one"]
    problems = []
    if loader.batch_size is None and loader.batch_sampler is None:
        problems.append("the training loader makes no batches: give batch_size")
    sampler, batches = loader.sampler, loader.batch_sampler
    if type(sampler) not in (RandomSampler, SequentialSampler):
        problems.append(
            f"{type(sampler).__name__} draws some rows more often than others, which epsilon does not count: shuffle evenly, "
            "and balance the classes when images are drawn from the generator"
        )
    elif batches is not None and type(batches) is not BatchSampler:
        problems.append(f"{type(batches).__name__} chooses batches itself: give batch_size and shuffle")
    return problems
