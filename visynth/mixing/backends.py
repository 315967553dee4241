"""The three ways of mixing, from the user's loaders and the options: positions of datasets, or rows of batches.

``samples`` exchanges samples of map-style datasets. ``batches`` exchanges rows of finished batches, before they go to
the device, with rendered images that a loader of their own reads ahead. ``online`` does so on the device, with
images made there.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, SubsetRandomSampler

from visynth.core import balance as balancing
from visynth.core import seeds as seeding
from visynth.core.artifact import read_spec
from visynth.core.errors import UsageError, choices
from visynth.core.manifest import Renders
from visynth.core.recipe import Recipe
from visynth.data.labels import find_attribute, find_labels, map_classes, whole_numbers
from visynth.generators.base import SCHEMA, Generator, load_generator
from visynth.mixing.convert import random_state_kept
from visynth.mixing.layout import Layout
from visynth.mixing.loaders import Leaf, chosen, draws_its_own, exchange, with_dataset, within
from visynth.mixing.options import DEFAULT_BALANCE, MOST, Options, share_at
from visynth.mixing.plan import Mix, deal, names_of_labels
from visynth.mixing.positions import MixedDataset, check_labels, first_sample, more_samples
from visynth.mixing.reporting import log_counts, tell
from visynth.mixing.rows import BatchMixer, BatchPlan
from visynth.mixing.schedule import next_epoch, share_of_batch, share_of_epoch
from visynth.mixing.sources import GeneratedSource, RenderedSource, has_regions, is_generator, of_classes, open_renders
from visynth.mixing.targets import BoxTarget, MaskTarget, labels_in, target_of


@dataclass
class Mixed:
    """The loaders to train on and, for the batch-wise backends, what changes their batches."""

    backend: str
    loaders: Any
    mixers: dict[tuple[Any, ...], BatchMixer]
    trainer: Any = None
    epoch: int = -1

    def join(self, batch: Any, number: int) -> Any:
        epoch = -1 if self.trainer is None else int(self.trainer.current_epoch)
        if epoch != self.epoch:
            self._log_epoch()
            self.epoch = epoch
        for path, mixer in self.mixers.items():
            batch = within(batch, path, functools.partial(mixer.join, number=number))
        return batch

    def close(self) -> None:
        self._log_epoch()
        for mixer in self.mixers.values():
            mixer.close()
            mixer.warn_if_short()

    def _log_epoch(self) -> None:
        for mixer in self.mixers.values():
            log_counts(self.trainer, self.epoch, mixer.counts)
            mixer.counts.clear()


def mix_loaders(loaders: Any, source: Any, options: Options, trainer: Any = None) -> Mixed:
    """Mix a source into the user's training loaders.

    Args:
        loaders: what ``train_dataloader`` gave.
        source: a renders folder, a generator folder or a Generator.
        options: what WithSynthetic was told.
        trainer: where there is one: it knows the epoch and how far the training is.

    Raises:
        UsageError: classes that cannot be matched; a backend that cannot do it, with the one that can.
    """
    leaves_of = chosen(loaders, options.loader)
    backend = choose_backend(leaves_of, source, options)
    synthetic = source if backend == "online" else open_renders(source, options.keep or {})
    if options.recipe is not None:
        check_source(options.recipe, synthetic)
    if backend == "samples":
        mixed = {leaf.path: _mixed_loader(leaf, synthetic, options, trainer) for leaf in leaves_of}
        return Mixed(backend, exchange(loaders, mixed), {})
    mixers = {leaf.path: _joiner(leaf, synthetic, options, trainer) for leaf in leaves_of}
    return Mixed(backend, loaders, {path: j for path, j in mixers.items() if j is not None}, trainer)


def choose_backend(found: Sequence[Leaf], source: Any, options: Options) -> str:
    """The backend asked for, or the one that fits.

    Raises:
        UsageError: it cannot do it; the message names the one that can.
    """
    problems = [f"{leaf.name or 'the training loader'} {leaf.problem()}" for leaf in found if leaf.problem()]
    asked = options.backend
    if is_generator(source):
        if asked not in ("auto", "online"):
            raise UsageError(
                f"backend={asked!r} mixes rendered images, but the source is a generator: render it first ('visynth "
                "render'), or "
                "take backend='online', which makes the images during the training."
            )
        return "online"
    if asked == "online":
        raise UsageError(
            "backend='online' makes images during the training and needs a generator, but the source is a rendered "
            "set: give the "
            "generator's folder, or take backend='samples' or 'batches'."
        )
    if asked == "samples" and problems:
        raise UsageError(
            "backend='samples' exchanges samples of map-style datasets in torch DataLoaders, but "
            f"{'; '.join(problems)}. "
            "Take backend='batches' (rendered images) or 'online' (a generator), which exchange rows of any batches; "
            "or name the "
            "loader that it can mix into with loader=."
        )
    if asked != "auto":
        return asked
    # Batches show their labels where the dataset does not, and vary the images of a row that a sampler draws many
    # times.
    if problems or any(_labels(leaf, options) is None or draws_its_own(leaf) for leaf in found):
        return "batches"
    return "samples"


def _mixed_loader(leaf: Leaf, renders: Renders, options: Options, trainer: Any) -> Any:
    loader: DataLoader[Any] = leaf.loader
    labels = _labels(leaf, options)
    within = draws_its_own(leaf)
    with random_state_kept():  # one real sample is read to see what samples look like
        geometry = _shows_geometry(first_sample(loader.dataset)[1], options)
    if labels is None and not geometry:  # masks and boxes are not read for room, since most of them hold background
        raise UsageError(
            "backend='samples' exchanges samples before they are loaded, and the labels of this dataset cannot be "
            "read without loading them, so "
            "samples of the very class that is to be filled would make room: give labels= (one a sample), or take "
            "backend='batches', which "
            "reads them in the batches."
        )
    rendered, regions = _rendered_classes(renders)
    needed = [name for name in rendered if name in regions] if geometry else rendered
    indices = map_classes(loader.dataset, rendered, needed, options.classes, labels, geometry=geometry)
    mix = plan_mix(rendered, indices, options, labels, leaf.length, renders.counts())
    if not mix.share and not options.fields:
        return loader
    with random_state_kept():  # samples are read: transforms may draw random numbers
        names = held_classes(rendered, indices, mix, labels)
        source = RenderedSource(of_classes(renders, names), indices, mix.seed)
        share_of = share_of_epoch(options, mix, trainer)
        drawn = len(loader.sampler) if isinstance(loader.sampler, SubsetRandomSampler) else None
        within = within and labels is not None
        dataset = MixedDataset(loader.dataset, source, labels, mix, options, share_of, within, drawn)
    tell(trainer, "samples", leaf, mix, dataset.convert, dataset.within)
    if trainer is not None:
        dataset.epoch_of = functools.partial(next_epoch, trainer)
        dataset.log = functools.partial(log_counts, trainer)
    return with_dataset(loader, dataset)


def _joiner(leaf: Leaf, source: Any, options: Options, trainer: Any) -> BatchMixer | None:
    dataset, labels = leaf.dataset, _labels(leaf, options)
    online = not isinstance(source, Renders)
    rendered, regions = (_generated_classes(source), set()) if online else _rendered_classes(source)
    # Whether labels are masks or boxes shows in the first batch only; numbers told by the user serve for both.
    geometry = labels is None and options.classes is not None
    needed = [name for name in rendered if name in regions] if geometry and regions else rendered
    indices = map_classes(dataset, rendered, needed, options.classes, labels)
    length = leaf.length if labels is None else len(labels)
    mix = plan_mix(rendered, indices, options, labels, length, None if online else source.counts())
    if not mix.share and not options.fields:
        return None
    if options.classes is None:  # the dataset's numbers: batches show what its target_transform makes of them
        numbers = as_shown(dataset, {*indices.values(), *mix.wanting})
        indices = {name: numbers[index] for name, index in indices.items()}
        mix = replace(mix, wanting=frozenset(numbers[label] for label in mix.wanting))
        if labels is not None and hasattr(dataset, "__getitem__") and leaf.length is not None:
            _check_listed(dataset, labels, options)
    seed = seeding.derive("joiner", mix.seed, leaf.name)
    names = tuple(n for n in held_classes(rendered, indices, mix, labels) if n in indices or n not in regions)
    if online:
        synthetic: Any = GeneratedSource(source, seed, options.sampler or {}, options.autocast)
    else:
        synthetic = RenderedSource(source, indices, seed)
    own = getattr(leaf.loader, "num_workers", 0)
    workers = options.workers if options.workers is not None else min(1, own if isinstance(own, int) else 0)
    private = type(leaf.loader) is DataLoader and leaf.loader.num_workers > 0  # a subclass may keep its batches
    context = getattr(leaf.loader, "multiprocessing_context", None)
    share_of = share_of_batch(options, mix, trainer)
    within = draws_its_own(leaf)
    size = getattr(leaf.loader, "batch_size", None) or getattr(
        getattr(leaf.loader, "batch_sampler", None), "batch_size", None
    )
    backend = "online" if online else "batches"
    plan = BatchPlan(
        names,
        indices,
        mix,
        options,
        share_of,
        dataset,
        seed,
        private,
        workers,
        context,
        within,
        lambda convert: tell(trainer, backend, leaf, mix, convert, within),
        size if isinstance(size, int) and leaf.length is not None else None,
    )
    return BatchMixer(plan, synthetic)


def plan_mix(
    names: Sequence[str],
    indices: Mapping[str, int],
    options: Options,
    labels: Sequence[int] | None,
    length: int | None,
    rendered: Mapping[str, int] | None,
) -> Mix:
    """Plan the numbers of each class and the share of synthetic samples.

    Args:
        names: classes that the source has.
        indices: the user's label of each.
        options: what WithSynthetic was told.
        labels: of the training samples, or None where they are not known.
        length: training samples, or None.
        rendered: images of each class, for a rendered set.

    Raises:
        UsageError: labels are unknown, and a balance other than a dict is asked for, or neither share nor a dict says
            how much.
    """
    recipe = options.recipe
    if recipe is not None:
        if labels is None:
            raise UsageError(
                "a recipe's shares are of each class's samples, whose labels cannot be read without loading images: give "
                "labels= (one a sample)."
            )
        options = by_recipe(recipe, names, indices, options)
    labels_of: dict[str, int] = {}
    if labels is None:
        if isinstance(options.balance, Mapping):
            wanted = balancing.targets(options.balance, dict.fromkeys(names, 0))
        elif options.balance is not None:
            raise UsageError(
                f"balance={options.balance!r} counts the training labels, which cannot be read without loading images: "
                "give labels= (one a "
                "sample), or a dict of exact counts, or share= alone."
            )
        elif options.share is None:
            raise UsageError(
                "the training labels cannot be read without loading images: give share=, a balance dict, or labels=."
            )
        else:
            wanted = dict(rendered) if rendered is not None else dict.fromkeys(names, 1)
        if options.share is None and length is None:
            raise UsageError(
                "the number of training samples is not known: give share= (the fraction that is synthetic)."
            )
    else:
        numbers = Counter(int(label) for label in labels if int(label) >= 0)  # -1 says "not labelled"
        wanted, labels_of = _wanted(numbers, indices, options)
    wanting = frozenset(labels_of[name] for name, n in wanted.items() if n and name in labels_of)
    wanted = {name: n for name, n in wanted.items() if name in names}
    total = sum(wanted.values())
    if not total:
        if not options.off:
            warnings.warn(
                "no class needs synthetic samples under this balance: training runs on real samples alone.",
                stacklevel=6,
            )
        return Mix(wanted, 0.0, options.spread, options.seed, wanting)
    count = int(length or 0) if labels is None else sum(int(label) >= 0 for label in labels)
    derived = total / max(count + total, 1)
    if recipe is not None:
        present = Counter(int(label) for label in labels or () if int(label) >= 0)
        room = max(present, key=lambda label: (present[label], -label))
        return Mix(wanted, derived, 0.0, options.seed, wanting, recipe.shares, room)
    derived = min(derived, MOST)
    share = options.share if isinstance(options.share, (int, float)) else derived
    if isinstance(options.share, Mapping):
        share = share_at(options.share, 0.0)
        share = share or max(share_at(options.share, p / 20) for p in range(21))
    return Mix(wanted, float(share), options.spread, options.seed, wanting)


def check_source(recipe: Recipe, source: Any) -> None:
    """A recipe is that of one generator's images.

    Raises:
        UsageError: the source is of another one.
    """
    if recipe.generator is None:
        return
    if isinstance(source, Renders):
        found = source.plan.get("generator")
    else:
        found = source.digest if isinstance(source, Generator) else load_generator(source).digest
    if found != recipe.generator:
        raise UsageError(
            f"the recipe was measured with generator {recipe.generator[:16]}, but these images are of {str(found)[:16]}: give "
            "the renders of the same trial, or a share of your own."
        )


def by_recipe(recipe: Recipe, names: Sequence[str], indices: Mapping[str, int], options: Options) -> Options:
    """The options with the recipe's shares as counts of each class: one image at least where a class has any.

    Raises:
        UsageError: it has synthetic images of classes that the source does not make.
    """
    missing = [name for name in recipe.shares if name not in names]
    if missing:
        raise UsageError(
            f"the recipe has synthetic images of {choices(missing)}, but there are only those of {choices(names)}."
        )
    # Classes of one label share its samples.
    sharing = Counter(indices[name] for name in recipe.shares if name in indices)

    def counts(real: Mapping[str, int]) -> dict[str, int]:
        wanted = {}
        for name, share in recipe.shares.items():
            if real.get(name):
                wanted[name] = math.ceil(real[name] / sharing[indices[name]] * share / (1 - share) - 1e-9)
        return wanted

    return replace(options, recipe=None, balance=counts)


def _wanted(
    numbers: Mapping[int, int], indices: Mapping[str, int], options: Options
) -> tuple[dict[str, int], dict[str, int]]:
    """Synthetic images wanted of each class, and each class's label, from the training's count of each label.

    Several classes may have one label (all defects, say): a dict says how much of each, of another balance each gets an
    even part.
    """
    names = names_of_labels(indices)
    balance = DEFAULT_BALANCE if options.balance is None else options.balance
    # A word fills the classes that the training holds; one that it does not hold must be named.
    held = sorted({*numbers, *names} if isinstance(balance, Mapping) or callable(balance) else {*numbers})
    called = {label: names.get(label, [f"label {label}"]) for label in held}
    labels_of = {name: label for label in held for name in called[label]}
    if isinstance(balance, Mapping) or callable(balance):
        return balancing.targets(balance, {name: numbers.get(label, 0) for name, label in labels_of.items()}), labels_of
    titles = {label: " and ".join(called[label]) for label in held}
    each = balancing.targets(
        balance, {titles[label]: numbers.get(label, 0) for label in held}, to=options.to, cap=options.cap
    )
    wanted: dict[str, int] = {}
    for label, own in called.items():
        wanted |= dict(zip(own, deal([1 / len(own)] * len(own), each[titles[label]]), strict=True))
    return wanted, labels_of


def _check_listed(dataset: Any, labels: Sequence[int], options: Options) -> None:
    """Samples of a dataset must carry the labels that it lists: batches show the former, the balance counts the
    latter."""
    with random_state_kept():
        place, example = first_sample(dataset)
        layout = Layout.of(example, options.image_key, options.label_key)
        target = target_of(layout.get(example, layout.label), find_attribute(dataset, "target_transform"))
        check_labels([(place, example), *more_samples(dataset, labels, place)], labels, layout, target)


def held_classes(
    rendered: Sequence[str], indices: Mapping[str, int], mix: Mix, labels: Sequence[int] | None
) -> list[str]:
    """Classes that may be drawn: those that the training holds, or that the balance names; a training of normals stays
    one."""
    if labels is None:
        return list(rendered)
    there = {int(label) for label in labels}
    return [name for name in rendered if indices.get(name) in there or mix.counts.get(name, 0) or name not in indices]


def _labels(leaf: Leaf, options: Options) -> list[int] | None:
    labels = find_labels(leaf.dataset)
    if options.labels is not None:
        labels = whole_numbers(list(options.labels))
        if labels is None:
            raise UsageError(f"labels= takes one class number a sample, but got {list(options.labels)[:3]!r}...")
    if labels is not None and leaf.length is not None and len(labels) != leaf.length:
        raise UsageError(f"labels has {len(labels)} entries, the training dataset {leaf.length} samples.")
    sampler = getattr(leaf.loader, "sampler", None)
    if labels is not None and isinstance(sampler, SubsetRandomSampler):
        drawn = {int(index) for index in sampler.indices}  # the others are as if they were not there
        labels = [label if place in drawn else -1 for place, label in enumerate(labels)]
    return labels


def as_shown(dataset: Any, numbers: Collection[int]) -> dict[int, int]:
    """Labels as batches show them: its ``target_transform`` of them.

    Raises:
        UsageError: it makes of some class something that is no number.
    """
    moved = find_attribute(dataset, "target_transform")
    if not callable(moved):
        return {number: number for number in numbers}
    arrays = {}
    for number in numbers:
        try:
            (arrays[number],) = labels_in(moved(number))
        except Exception as error:
            raise UsageError(
                f"the dataset's target_transform makes no class number of label {number} ({type(error).__name__}: "
                f"{error}), so rows of batches cannot "
                "be told apart: give classes={name: number in batches}, or backend='samples'."
            ) from error
    return arrays


def _shows_geometry(sample: Any, options: Options) -> bool:
    layout = Layout.of(sample, options.image_key, options.label_key)
    return isinstance(target_of(layout.get(sample, layout.label)), (BoxTarget, MaskTarget))


def _rendered_classes(renders: Renders) -> tuple[list[str], set[str]]:
    """Classes of a rendered set, and those of them whose images have masks or boxes."""
    rendered = [name for name, count in renders.counts().items() if count]
    return rendered, {name for name in rendered if has_regions(renders, name)}


def _generated_classes(source: Any) -> list[str]:
    """Classes of a generator, from its JSON alone: its weights are loaded when the training starts."""
    return list(source.classes if isinstance(source, Generator) else read_spec(Path(source), (SCHEMA,))["classes"])
