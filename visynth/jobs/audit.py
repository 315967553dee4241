"""``visynth audit`` of an image generator: what whoever has it learns of the images that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.artifact import PRIVACY
from visynth.core.codec import Array
from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.core.members import meetings
from visynth.core.pictures import fit_to, to_channels
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, bullets, environment, gallery, table, text
from visynth.data.imageset import ImageSet, Item, in_threads
from visynth.generators.base import Generator
from visynth.generators.diffusion import Diffusion
from visynth.generators.gan import CGAN, BigGAN, StyleGAN2
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractors import extractor
from visynth.metrics.memorization import unit
from visynth.privacy.audit import (
    FEWEST,
    Attacked,
    Findings,
    attack_blocks,
    blind,
    bound_by_scores,
    check_sides,
    claim_blocks,
)
from visynth.privacy.diffusion_attacks import ATTACKS, by_heart
from visynth.privacy.gan_attacks import DISCRIMINATOR, INVERSION, Discriminator, inversion_scores
from visynth.privacy.membership import Floats, Membership, closer_share, membership

MOST = 2000  # members and controls that are attacked
HEART, HEART_STEPS = 64, 400  # images that the positive control learns by heart, and steps for it
SHOWN = 12  # pairs of the gallery
RESOLUTION = 112
SMALL = 48  # side of the copies whose pixels are compared
BY_FEATURES, BY_PIXELS = "nearest generated image, by features", "nearest generated image, by pixels"


@dataclass(frozen=True)
class Side:
    """Images at the generator's size: ``[N, C, H, W]``, labels ``[N]``, names, features ``[N, D]``."""

    images: NDArray[Any]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    features: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Side:
        return Side(self.images[rows], self.labels[rows], tuple(self.names[r] for r in rows), self.features[rows])

    def __len__(self) -> int:
        return len(self.labels)


def audit_images(
    generator: Generator,
    images: ImageSet,
    *,
    members: Sequence[str] | None = None,
    holdout: ImageSet | None = None,
    discriminator: Discriminator | None = None,
    inverted: int = 0,
    drawn: int = 1000,
    fit: str = "crop",
    seed: int = 0,
    show: bool = True,
    progress: Progress = no_progress,
) -> Report:
    """Attack a generator with members (images that it was trained on) and controls.

    Args:
        generator: the artifact.
        images: where its training images are.
        members: names of the images that were trained on, where the generator has no fingerprints (a private one).
        holdout: other images of the same kind that were not; by default those of ``images`` that are no members.
        discriminator: the discriminator of a GAN, see :func:`discriminator_of`.
        inverted: members, and as many controls, that a GAN is made to reconstruct; 0: none.
        drawn: synthetic images to compare with.
        fit: how images became the generator's size in training.
        seed: of everything.
        show: real images beside their nearest synthetic ones; leave out for a report that is published.
        progress: receives lines.

    Raises:
        UsageError: no holdout; names of members that are no images; an inversion of what is no GAN.
        DataError: images that do not match the generator's fingerprints; too few on a side.
    """
    if inverted and inverted < FEWEST:
        raise UsageError(
            f"an inversion of fewer than {FEWEST} members says nothing: invert 0 (none), or at least so many, not {inverted}."
        )
    if inverted and not isinstance(generator, (StyleGAN2, BigGAN, CGAN)):
        raise UsageError(
            f"a {generator.spec.network!r} generator is not inverted: StyleGAN2, BigGAN and the plain cGAN are."
        )
    own, others, notes = split_sides(generator, images, members, holdout)
    count = min(len(own[1]), len(others[1]), MOST)
    check_sides(len(own[1]), len(others[1]))
    own, others = _even(own, others, count, seed)
    bank = FeatureBank(extractor(), resolutions=(RESOLUTION,))
    progress(f"reading {len(own[1])} members and as many controls")
    sides = [_side(generator, source, items, fit, bank) for source, items in (own, others)]
    rng = seeding.rng(seed, "audit/labels")
    labels = rng.choice(sides[0].labels, drawn)
    progress(f"drawing {drawn} images")
    fake = _drawn(generator, labels, seed, bank)
    attacks, scores = _attacks(generator, sides[0], sides[1], fake, seed, progress)
    none = attacks[0].negative
    if discriminator is not None:
        attacked, scores[DISCRIMINATOR] = _by_discriminator(discriminator, sides[0], sides[1], none, seed)
        attacks.append(attacked)
    if inverted:
        progress(f"inverting the generator for {inverted} members and as many controls")
        attacked, scores[INVERSION] = _inverted(generator, sides[0], sides[1], inverted, none, seed)
        attacks.append(attacked)
    privacy = dict(generator.card.get(PRIVACY, {}))
    level = 0.05 / len(scores)
    bounds = {name: bound_by_scores(a, b, privacy.get("delta", 0.0), level) for name, (a, b) in scores.items()}
    findings = Findings(attacks, bounds, privacy, _closer(sides[0], sides[1], fake))
    return _report(
        generator, images, findings, (sides[0], fake), [*notes, *_untested(generator, discriminator, inverted)], show
    )


def split_sides(
    generator: Generator, images: ImageSet, named: Sequence[str] | None, holdout: ImageSet | None
) -> tuple[tuple[ImageSet, list[Item]], tuple[ImageSet, list[Item]], list[str]]:
    """Members and controls, and what should be known of them."""
    images = images.select(lambda item: len(item.labels) == 1 and item.labels[0] in generator.spec.classes)
    notes = []
    if named is not None:
        known = {item.name for item in images.items}
        lost = [name for name in named if name not in known]
        raise_all("the file of members", [f"{name!r} is no image of {images.root}" for name in lost], DataError)
        inside = set(named)
        recorded = images.select(lambda item: item.name in inside).members("train")
        _, near = meetings(images.members(""), recorded)
        notes.append(
            "which images are members was taken from a file: the generator has no fingerprints to compare with"
        )
    else:
        recorded = list(generator.members)
        if not recorded:
            raise UsageError(
                "the generator has no fingerprints of its training images (a private fit keeps none): name them in --members FILE."
            )
        candidates = images.members("")
        same, near = meetings(candidates, [m for m in recorded if m.split == "train"])
        inside = {name for name, member in same.items() if member.split == "train"}
        trained = sum(m.split == "train" for m in recorded)
        if not inside:
            raise DataError(
                f"none of the {len(candidates)} images of {images.root} is one of the {trained} that the generator was trained on "
                f"({choices([m.path for m in recorded[:2]])}, ...): altered, or other data."
            )
        if len(inside) < trained:
            notes.append(
                f"{trained - len(inside)} of {trained} training images were not found, or are altered: not attacked"
            )
    own = [item for item in images.items if item.name in inside]
    outside = [item for item in images.items if item.name not in inside and item.name not in near]
    if near:
        notes.append(f"{len(set(near) - inside)} images are near-duplicates of members: on neither side")
    if holdout is None:
        return (images, own), (images, outside), notes
    other = holdout.select(lambda item: len(item.labels) == 1 and item.labels[0] in generator.spec.classes)
    if recorded:
        same, near = meetings(other.members(""), recorded)
        trained_on = {n for n, m in {**near, **same}.items() if m.split == "train"}
        if trained_on:
            notes.append(f"{len(trained_on)} images of the holdout are members or near-duplicates of one: left out")
            other = other.select(lambda item: item.name not in trained_on)
    return (images, own), (other, list(other.items)), notes


def _even(
    own: tuple[ImageSet, list[Item]], others: tuple[ImageSet, list[Item]], count: int, seed: int
) -> tuple[tuple[ImageSet, list[Item]], tuple[ImageSet, list[Item]]]:
    """Equal sides with the same number of each class: else attacks would tell classes apart."""
    rng = seeding.rng(seed, "audit/sides")
    picked: tuple[list[Item], list[Item]] = ([], [])
    classes = sorted({item.label for item in own[1]} & {item.label for item in others[1]})
    pools = [[[item for item in side[1] if item.label == name] for name in classes] for side in (own, others)]
    sizes = np.array([min(len(a), len(b)) for a, b in zip(*pools, strict=True)])
    sizes = np.floor(sizes * min(1.0, count / max(sizes.sum(), 1))).astype(int)
    for side, pool in zip(picked, pools, strict=True):
        for items, size in zip(pool, sizes, strict=True):
            side.extend(items[int(row)] for row in rng.permutation(len(items))[:size])
    check_sides(len(picked[0]), len(picked[1]))
    return (own[0], picked[0]), (others[0], picked[1])


def _side(generator: Generator, images: ImageSet, items: Sequence[Item], fit: str, bank: FeatureBank) -> Side:
    spec = generator.spec
    enough = 2 * spec.size[0], 2 * spec.size[1]

    def fitted(item: Item) -> Array:
        image = to_channels(images.image(item, enough), spec.channels)
        return np.array(fit_to(image, spec.size, fit))

    pixels = in_threads(fitted, items)
    if {str(image.dtype) for image in pixels} != {spec.dtype}:
        raise DataError(
            f"the generator makes {spec.dtype} images, but the data hold {choices({str(i.dtype) for i in pixels})}."
        )
    labels = np.array([spec.classes.index(item.label) for item in items], np.int64)
    stacked = np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))
    return Side(stacked, labels, tuple(item.name for item in items), _embedded(pixels, bank))


def _embedded(pixels: Sequence[Array], bank: FeatureBank) -> NDArray[np.float32]:
    rows = bank.add(pixels, cache=False)
    return np.asarray(bank.get(RESOLUTION, "mean")[rows], np.float32)


def _drawn(generator: Generator, labels: NDArray[np.int64], seed: int, bank: FeatureBank) -> Side:
    seeds = [seeding.derive("audit", seed, number) for number in range(len(labels))]
    images = generator.sample(seeds, labels.tolist()).images.cpu().numpy()
    return Side(images, labels, (), _embedded([np.ascontiguousarray(i.transpose(1, 2, 0)) for i in images], bank))


def _attacks(
    generator: Generator, own: Side, others: Side, fake: Side, seed: int, progress: Progress
) -> tuple[list[Attacked], dict[str, tuple[Floats, Floats]]]:
    """Every attack that the generator allows, with its controls, and the scores of both sides."""
    half = len(others) // 2
    order = seeding.rng(seed, "audit/halves").permutation(len(others))
    first, second = others.take(order[:half]), others.take(order[half:])
    attacks, scores = [], {}
    none = blind(own.features, others.features, seed)
    noise = seeding.rng(seed, "audit/copies")
    for name, vectors in ((BY_FEATURES, _features), (BY_PIXELS, _pixels)):
        synthetic, copied = vectors(fake), vectors(first)
        sides = [_near(vectors(side), synthetic) for side in (own, others)]
        # Where leaking is certain: a generator that gives one half of the controls back, hardly changed.
        given = copied + 0.01 * copied.std() * noise.standard_normal(copied.shape)
        sure = [_near(side, given.astype(np.float32)) for side in (copied, vectors(second))]
        attacks.append(_attacked(name, sides, sure, none, seed))
        scores[name] = (sides[0], sides[1])
    if isinstance(generator, Diffusion) and not generator.network.conditions:
        progress("attacking the denoiser")
        network = generator.network
        few = first.take(np.arange(min(HEART, len(first))))
        rest = second.take(np.arange(min(HEART, len(second))))
        taught = by_heart(network, few.images, few.labels, HEART_STEPS, seed)
        for name, attack in ATTACKS.items():
            sides = [attack(network, side.images, side.labels, seed) for side in (own, others)]
            sure = [attack(taught, side.images, side.labels, seed) for side in (few, rest)]
            attacks.append(_attacked(name, sides, sure, none, seed, white_box=True))
            scores[name] = (sides[0], sides[1])
    return attacks, scores


def _by_discriminator(
    discriminator: Discriminator, own: Side, others: Side, none: Membership, seed: int
) -> tuple[Attacked, tuple[Floats, Floats]]:
    """Attack by the discriminator, which whoever has the run's checkpoint has."""
    parts = np.array_split(seeding.rng(seed, "audit/thirds").permutation(len(others)), 3)
    known, unlike, rest = (others.take(part[:HEART]) for part in parts)
    taught = discriminator.by_heart(known.images, unlike.images, (known.labels, unlike.labels), HEART_STEPS, seed)
    scores, sure = _scored(discriminator, own, others, seed), _scored(taught, known, rest, seed)
    return _attacked(DISCRIMINATOR, scores, sure, none, seed, white_box=True), scores


def _scored(discriminator: Discriminator, own: Side, others: Side, seed: int) -> tuple[Floats, Floats]:
    """Scores of both sides, in mixed batches: some discriminators look at a batch as a whole, which must not tell the sides apart."""
    order = seeding.rng(seed, "audit/batches").permutation(len(own) + len(others))
    images, labels = (
        np.concatenate(parts)[order] for parts in ((own.images, others.images), (own.labels, others.labels))
    )
    scores = np.empty(len(order))
    scores[order] = discriminator.scores(images, labels)
    return scores[: len(own)], scores[len(own) :]


def _inverted(
    generator: Generator, own: Side, others: Side, count: int, none: Membership, seed: int
) -> tuple[Attacked, tuple[Floats, Floats]]:
    """Attack by reconstruction; images of the generator's own, of the controls' classes, are what it certainly gives back."""
    rows = seeding.rng(seed, "audit/inverted").permutation(min(len(own), len(others)))[
        :count
    ]  # both sides are alike row by row
    labels = others.labels[rows]
    made = (
        generator.sample([seeding.derive("audit/inverted", seed, int(r)) for r in rows], labels.tolist())
        .images.cpu()
        .numpy()
    )
    given = (own.images[rows], own.labels[rows]), (others.images[rows], labels), (made, labels)
    a, b, c = (inversion_scores(generator, images, classes, seed) for images, classes in given)
    return _attacked(INVERSION, (a, b), (c, b), none, seed, white_box=True), (a, b)


def _attacked(
    name: str, sides: Sequence[Floats], sure: Sequence[Floats], none: Membership, seed: int, white_box: bool = False
) -> Attacked:
    found = [membership(name, pair[0], pair[1], seed) for pair in (sides, sure)]
    return Attacked(found[0], found[1], none, white_box)


def _features(side: Side) -> NDArray[np.float32]:
    return unit(side.features).astype(np.float32)


def _pixels(side: Side) -> NDArray[np.float32]:
    """Pixels ``[N, D]`` in [0, 1]; of large images those of a small copy."""
    top, small = np.float32(np.iinfo(side.images.dtype).max), min(SMALL, *side.images.shape[2:])
    parts = [
        torch.nn.functional.adaptive_avg_pool2d(
            torch.from_numpy(side.images[k : k + 64].astype(np.float32) / top), small
        )
        for k in range(0, len(side), 64)
    ]
    return np.asarray(torch.cat(parts).flatten(1).numpy(), np.float32)


def _distances(x: NDArray[np.float32], y: NDArray[np.float32]) -> Floats:
    found = torch.cdist(torch.from_numpy(x), torch.from_numpy(y))
    return np.asarray(found.double().numpy())


def _near(x: NDArray[np.float32], fake: NDArray[np.float32]) -> Floats:
    """Minus the distance of each image to its nearest generated one."""
    return np.asarray(-_distances(x, fake).min(axis=1))


def _closer(own: Side, others: Side, fake: Side) -> tuple[float, float, float]:
    """Share of generated images that are closer to a member than to any of as many controls, with its 95 % interval: extraction
    by generating and filtering, where 0.5 is chance."""
    synthetic = _features(fake)
    found = [_distances(synthetic, _features(side)) for side in (own, others)]
    share, low, high = closer_share(*((one.min(axis=1), one.argmin(axis=1)) for one in found))
    return share, max(low, 0.0), min(high, 1.0)


def _report(
    generator: Generator,
    images: ImageSet,
    findings: Findings,
    pairs: tuple[Side, Side],
    notes: Sequence[str],
    show: bool,
) -> Report:
    attacks = findings.attacks
    report = Report("privacy audit", Path(images.root).name, lead=findings.lead)
    count = attacks[0].found.members
    report.section(
        "Membership inference", text(f"{count} members, {count} controls of the same classes."), *attack_blocks(attacks)
    )
    if findings.closer is not None:
        share, low, high = findings.closer
        report.section(
            "Extraction",
            table(
                ["generated images closer to a member than to any control", "95 %", "chance"],
                [[f"{share:.3f}", f"[{low:.3f}, {high:.3f}]", "0.5"]],
                f"{len(pairs[1])} generated images, by features.",
            ),
        )
    report.section("Lower bounds on epsilon", *claim_blocks(findings))
    if show:
        report.section("Nearest pairs", *_gallery(*pairs))
    report.section("Not tested", bullets(list(notes)))
    report.conditions |= {"generator": generator.digest, "audit": findings.to_json(), **environment()}
    return report


def _gallery(own: Side, fake: Side) -> list[dict[str, Any]]:
    distances = _distances(_features(own), _features(fake))
    order = np.argsort(distances.min(axis=1), kind="stable")[:SHOWN]
    pictures, captions = [], []
    for row in order:
        pictures += [_shown(own.images[row]), _shown(fake.images[int(distances[row].argmin())])]
        captions += ["training image", "nearest generated"]
    note = "The members with the nearest generated images. Real images are shown: for reviewers, not for publication."
    return [gallery(captions, pictures, 6, note)]


def _shown(image: NDArray[Any]) -> Array:
    top = np.iinfo(image.dtype).max
    values = (image.transpose(1, 2, 0).astype(np.float64) * (255 / top)).astype(np.uint8)
    return to_channels(values, 3)


def discriminator_of(run: str | Path, generator: Generator) -> Discriminator:
    """The discriminator of a training run, which must be that of the generator.

    Raises:
        UsageError: no run there, or one without a discriminator.
        DataError: its generator is another one.
    """
    from visynth.jobs.train import last_state

    module, attacked = last_state(run), cast(Any, generator)
    if not hasattr(module, "as_attacked"):
        raise UsageError(f"{run} holds a run of {type(module).__name__}, which has no discriminator.")
    # Without the norms' standing statistics, which are measured anew and differ in the last bit from device to device.
    here, there = (dict(one.network.named_parameters()) for one in (module.generator(), attacked))
    same = here.keys() == there.keys() and all(torch.equal(here[name].cpu(), there[name].cpu()) for name in here)
    if not same:
        raise DataError(f"{run} trained another generator than the audited one: its last checkpoint has other weights.")
    discriminator: Discriminator = module.to(attacked.device).as_attacked()
    return discriminator


def _untested(generator: Generator, discriminator: Discriminator | None, inverted: int) -> list[str]:
    open_ones = ["shadow models"]
    if isinstance(generator, (StyleGAN2, BigGAN, CGAN)):
        open_ones += [] if discriminator is not None else ["the discriminator, which the run's checkpoint has (--run)"]
        open_ones += [] if inverted else ["reconstruction by inverting the generator (--invert 50)"]
    elif not isinstance(generator, Diffusion) or generator.network.conditions:
        open_ones.append("white-box attacks on the network: there are none for this kind of generator here")
    return [
        f"not tried: {', '.join(open_ones)}",
        "distances of single records are not written down: they would be a leak themselves",
    ]
