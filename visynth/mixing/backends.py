"""The three ways of mixing, from the user's loaders and the options: positions of datasets, or rows of batches.

``samples`` exchanges samples of map-style datasets. ``batches`` exchanges rows of finished batches, before they go to
the device, with rendered pictures that a loader of their own reads ahead. ``online`` does so on the device, with
pictures made there.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler

from visynth.core import balance as balancing
from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.core.artifact import read_spec
from visynth.core.errors import UsageError
from visynth.core.manifest import Renders
from visynth.data.labels import find_attribute, find_labels, map_classes, whole_numbers
from visynth.generators.base import SCHEMA, Generator
from visynth.mixing.convert import Converter, random_state_kept
from visynth.mixing.layout import Form
from visynth.mixing.loaders import Leaf, chosen, exchange, with_dataset, within
from visynth.mixing.options import DEFAULT_BALANCE, MOST, Options, needs_progress, share_at, training_progress
from visynth.mixing.plan import Mix, deal, names_of_labels
from visynth.mixing.positions import MixedDataset, check_labels, first_sample, more_samples
from visynth.mixing.rows import Joiner, Plan
from visynth.mixing.sources import GeneratedSource, RenderedSource, has_regions, is_generator, of_classes, open_renders
from visynth.mixing.targets import BoxTarget, MaskTarget, labels_in, target_of

KNOWN_SAMPLERS = (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    DistributedSampler,
)  # they draw every position alike


@dataclass
class Mixed:
    """The loaders to train on and, for the batch-wise backends, what changes their batches."""

    backend: str
    loaders: Any
    joiners: dict[tuple[Any, ...], Joiner]
    trainer: Any = None
    epoch: int = -1

    def join(self, batch: Any, number: int) -> Any:
        epoch = -1 if self.trainer is None else int(self.trainer.current_epoch)
        if epoch != self.epoch:
            self._log_epoch()
            self.epoch = epoch
        for path, joiner in self.joiners.items():
            batch = within(batch, path, functools.partial(joiner.join, number=number))
        return batch

    def close(self) -> None:
        self._log_epoch()
        for joiner in self.joiners.values():
            joiner.close()
            joiner.warn_if_short()

    def _log_epoch(self) -> None:
        for joiner in self.joiners.values():
            log_counts(self.trainer, self.epoch, joiner.counts)
            joiner.counts.clear()


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
    found = chosen(loaders, options.loader)
    backend = choose_backend(found, source, options)
    if backend == "samples":
        renders = open_renders(source, options.keep or {})
        made = {leaf.path: _mixed_loader(leaf, renders, options, trainer) for leaf in found}
        return Mixed(backend, exchange(loaders, made), {})
    synthetic = source if backend == "online" else open_renders(source, options.keep or {})
    joiners = {leaf.path: _joiner(leaf, synthetic, options, trainer) for leaf in found}
    return Mixed(backend, loaders, {path: j for path, j in joiners.items() if j is not None}, trainer)


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
    # Batches show their labels where the dataset does not, and vary the pictures of a row that a sampler draws many
    # times.
    if problems or any(_labels(leaf, options) is None or draws_its_own(leaf) for leaf in found):
        return "batches"
    return "samples"


def draws_its_own(leaf: Leaf) -> bool:
    """Whether a loader's sampler decides how often each class comes: balanced, weighted, M of a class."""
    if not isinstance(leaf.loader, DataLoader) or leaf.problem() is not None:
        return False
    # With a batch sampler of the user's own, the loader's own sampler is a default that nobody asks.
    return not isinstance(getattr(leaf.loader.batch_sampler, "sampler", None), KNOWN_SAMPLERS)


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
    made, regions = _rendered_classes(renders)
    needed = [name for name in made if name in regions] if geometry else made
    indices = map_classes(loader.dataset, made, needed, options.classes, labels, geometry=geometry)
    mix = plan_mix(made, indices, options, labels, leaf.length, renders.counts())
    if not mix.share and not options.fields:
        return loader
    with random_state_kept():  # samples are read: transforms may draw random numbers
        names = held_classes(made, indices, mix, labels)
        source = RenderedSource(of_classes(renders, names), indices, mix.seed)
        share_of = _share_of_epoch(options, mix, trainer)
        drawn = len(loader.sampler) if isinstance(loader.sampler, SubsetRandomSampler) else None
        within = within and labels is not None
        dataset = MixedDataset(loader.dataset, source, labels, mix, options, share_of, within, drawn)
    tell(trainer, "samples", leaf, mix, dataset.convert, dataset.within)
    if trainer is not None:
        dataset.epoch_of = functools.partial(next_epoch, trainer)
        dataset.log = functools.partial(log_counts, trainer)
    return with_dataset(loader, dataset)


def _joiner(leaf: Leaf, source: Any, options: Options, trainer: Any) -> Joiner | None:
    dataset, labels = leaf.dataset, _labels(leaf, options)
    online = not isinstance(source, Renders)
    made, regions = (_generated_classes(source), set()) if online else _rendered_classes(source)
    # Whether labels are masks or boxes shows in the first batch only; numbers told by the user serve for both.
    geometry = labels is None and options.classes is not None
    needed = [name for name in made if name in regions] if geometry and regions else made
    indices = map_classes(dataset, made, needed, options.classes, labels)
    length = leaf.length if labels is None else len(labels)
    mix = plan_mix(made, indices, options, labels, length, None if online else source.counts())
    if not mix.share and not options.fields:
        return None
    if options.classes is None:  # the dataset's numbers: batches show what its target_transform makes of them
        numbers = as_shown(dataset, {*indices.values(), *mix.wanting})
        indices = {name: numbers[index] for name, index in indices.items()}
        mix = replace(mix, wanting=frozenset(numbers[label] for label in mix.wanting))
        if labels is not None and hasattr(dataset, "__getitem__") and leaf.length is not None:
            _check_listed(dataset, labels, options)
    seed = seeding.derive("joiner", mix.seed, leaf.name)
    names = tuple(n for n in held_classes(made, indices, mix, labels) if n in indices or n not in regions)
    if online:
        synthetic: Any = GeneratedSource(source, seed, options.sampler or {}, options.autocast)
    else:
        synthetic = RenderedSource(source, indices, seed)
    own = getattr(leaf.loader, "num_workers", 0)
    workers = options.workers if options.workers is not None else min(1, own if isinstance(own, int) else 0)
    private = type(leaf.loader) is DataLoader and leaf.loader.num_workers > 0  # a subclass may keep its batches
    context = getattr(leaf.loader, "multiprocessing_context", None)
    share_of = _share_of_batch(options, mix, trainer)
    within = draws_its_own(leaf)
    size = getattr(leaf.loader, "batch_size", None) or getattr(
        getattr(leaf.loader, "batch_sampler", None), "batch_size", None
    )
    backend = "online" if online else "batches"
    plan = Plan(
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
    return Joiner(plan, synthetic)


def plan_mix(
    made: Sequence[str],
    indices: Mapping[str, int],
    options: Options,
    labels: Sequence[int] | None,
    length: int | None,
    rendered: Mapping[str, int] | None,
) -> Mix:
    """How much of each class, and which share of the samples.

    Args:
        made: classes that the source has.
        indices: the user's label of each.
        options: what WithSynthetic was told.
        labels: of the training samples, or None where they are not known.
        length: training samples, or None.
        rendered: images of each class, for a rendered set.

    Raises:
        UsageError: labels are unknown, and a balance other than a dict is asked for, or neither share nor a dict says
            how much.
    """
    labels_of: dict[str, int] = {}
    if labels is None:
        if isinstance(options.balance, Mapping):
            wanted = balancing.targets(options.balance, dict.fromkeys(made, 0))
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
            wanted = dict(rendered) if rendered is not None else dict.fromkeys(made, 1)
        if options.share is None and length is None:
            raise UsageError(
                "the number of training samples is not known: give share= (the fraction that is synthetic)."
            )
    else:
        numbers = Counter(int(label) for label in labels if int(label) >= 0)  # -1 says "not labelled"
        wanted, labels_of = _wanted(numbers, indices, options)
    wanting = frozenset(labels_of[name] for name, n in wanted.items() if n and name in labels_of)
    wanted = {name: n for name, n in wanted.items() if name in made}
    total = sum(wanted.values())
    if not total:
        if not options.off:
            warnings.warn(
                "no class needs synthetic samples under this balance: training runs on real samples alone.",
                stacklevel=6,
            )
        return Mix(wanted, 0.0, options.spread, options.seed, wanting)
    count = int(length or 0) if labels is None else sum(int(label) >= 0 for label in labels)
    derived = min(total / max(count + total, 1), MOST)
    share = options.share if isinstance(options.share, (int, float)) else derived
    if isinstance(options.share, Mapping):
        share = share_at(options.share, 0.0)
        share = share or max(share_at(options.share, p / 20) for p in range(21))
    return Mix(wanted, float(share), options.spread, options.seed, wanting)


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
        form = Form.of(example, options.image_key, options.label_key)
        target = target_of(form.get(example, form.label), find_attribute(dataset, "target_transform"))
        check_labels([(place, example), *more_samples(dataset, labels, place)], labels, form, target)


def held_classes(made: Sequence[str], indices: Mapping[str, int], mix: Mix, labels: Sequence[int] | None) -> list[str]:
    """Classes that may be drawn: those that the training holds, or that the balance names; a training of normals stays
    one."""
    if labels is None:
        return list(made)
    there = {int(label) for label in labels}
    return [name for name in made if indices.get(name) in there or mix.counts.get(name, 0) or name not in indices]


def log_info(trainer: Any, words: str, *values: Any) -> None:
    """A line on the first rank by a child of Lightning's own logger, so that it shows where Lightning's lines show."""
    if not distributed.rank():
        package = "visynth" if trainer is None else f"{type(trainer).__module__.split('.trainer')[0]}.visynth"
        logging.getLogger(package).info(words, *values)


def log_counts(trainer: Any, epoch: int, counts: Mapping[str, int]) -> None:
    """A line an epoch: how many synthetic samples of which class."""
    if counts:
        told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        log_info(trainer, "synthetic samples in epoch %d: %s", epoch, told)


def tell(trainer: Any, backend: str, leaf: Leaf, mix: Mix, convert: Converter, within: bool) -> None:
    """One line at the start of a training: what is mixed in, and how."""
    classes = ", ".join(name for name, count in mix.counts.items() if count)
    of = f"share {mix.share:.3g} " + ("of the samples of each class that receives" if within else "of all samples")
    where = f" into loader {leaf.name!r}" if leaf.name else ""
    words = "mixing synthetic images%s: backend %s, %s, of %s; images by %s"
    log_info(trainer, words, where, backend, of, classes, convert.name)


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
    """What batches show for the dataset's own label numbers: its ``target_transform`` of them.

    Raises:
        UsageError: it makes of some class something that is no number.
    """
    moved = find_attribute(dataset, "target_transform")
    if not callable(moved):
        return {number: number for number in numbers}
    found = {}
    for number in numbers:
        try:
            (found[number],) = labels_in(moved(number))
        except Exception as error:
            raise UsageError(
                f"the dataset's target_transform makes no class number of label {number} ({type(error).__name__}: "
                f"{error}), so rows of batches cannot "
                "be told apart: give classes={name: number in batches}, or backend='samples'."
            ) from error
    return found


def _shows_geometry(sample: Any, options: Options) -> bool:
    form = Form.of(sample, options.image_key, options.label_key)
    return isinstance(target_of(form.get(sample, form.label)), (BoxTarget, MaskTarget))


def _rendered_classes(renders: Renders) -> tuple[list[str], set[str]]:
    """Classes of a rendered set, and those of them whose pictures have masks or boxes."""
    made = [name for name, count in renders.counts().items() if count]
    return made, {name for name in made if has_regions(renders, name)}


def _generated_classes(source: Any) -> list[str]:
    """Classes of a generator, from its JSON alone: its weights are loaded when the training starts."""
    return list(source.classes if isinstance(source, Generator) else read_spec(Path(source), (SCHEMA,))["classes"])


def _share_of_epoch(options: Options, mix: Mix, trainer: Any) -> Callable[[int], float] | None:
    """Share of an epoch where it changes, from the trainer's number of epochs."""
    if not needs_progress(options) or not mix.share:
        return None
    if trainer is None:
        raise UsageError("share changes during the training: the datamodule needs a Trainer that says how far that is.")
    epochs = trainer.max_epochs
    if (epochs is None or epochs < 2) and (trainer.max_steps is None or trainer.max_steps < 1):
        raise UsageError(
            f"share changes during the training, by epochs under backend='samples', but max_epochs is {epochs} and "
            "max_steps is not "
            "set: set one of them, or take backend='batches' or 'online', which change it from batch to batch."
        )
    share = options.share if options.share is not None else mix.share

    def of(epoch: int) -> float:
        if epochs is not None and epochs > 0:
            return share_at(share, epoch / epochs, options.finish)
        if epoch == 0:
            return share_at(share, 0.0, options.finish)
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches  # of an epoch
        return share_at(share, min(1.0, epoch * steps / trainer.max_steps), options.finish)

    return of


def _share_of_batch(options: Options, mix: Mix, trainer: Any) -> Callable[[int], float]:
    if not needs_progress(options) or not mix.share:
        return lambda number: mix.share
    share = options.share if options.share is not None else mix.share

    def of(number: int) -> float:
        total = batches_of(trainer)
        progress = training_progress(trainer) if total is None else number / total
        return share_at(share, min(1.0, progress), options.finish)

    return remembered(of)


def remembered(share_of: Callable[[int], float]) -> Callable[[int], float]:
    """The share of each batch, asked once: pictures are read ahead, and where the loader's length is not known the
    answer changes meanwhile.

    Example:
        >>> answers = iter([0.1, 0.9])
        >>> of = remembered(lambda number: next(answers))
        >>> [of(3), of(4), of(3)]
        [0.1, 0.9, 0.1]
    """
    known = array("d")

    def of(number: int) -> float:
        if number >= len(known):
            known.extend([math.nan] * (number + 1 - len(known)))
        if math.isnan(known[number]):
            known[number] = share_of(number)
        return known[number]

    return of


def next_epoch(trainer: Any) -> int:
    """Number of the epoch that a loader is about to begin.

    A checkpoint of the last batch of an epoch says that this epoch is under way; Lightning finds out that it is over
    only after it has asked the loader for its next batches.
    """
    epoch = trainer.fit_loop.epoch_progress.current
    over = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and epoch.completed < epoch.started
    return int(trainer.current_epoch) + int(over)


def batches_of(trainer: Any) -> float | None:
    """Batches of the whole training, where Lightning knows."""
    totals = []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and 0 < batches < float("inf"):
        totals.append(float(trainer.max_epochs * batches))
    if trainer.max_steps is not None and trainer.max_steps > 0:
        totals.append(float(trainer.max_steps * trainer.accumulate_grad_batches))
    return min(totals) if totals else None
