"""One typed function per verb: read the input, call one stage, say what came of it. Flags come from the signatures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from json import dumps
from pathlib import Path
from typing import Any

from visynth.errors import UsageError


def trial(
    data: str,
    rare: list[str],
    out: str = "trial",
    masks: str | None = None,
    groups: str | None = None,
    group_pattern: str | None = None,
    good: str | None = None,
    rare_groups: int | None = None,
    draws: int = 5,
    folds: int = 3,
    synthetic: int = 100,
    render: int = 60,
    minutes: float = 10.0,
    seed: int = 0,
    workers: int = 2,
    learner: str = "frozen",
    others: bool = True,
    dense: bool = True,
    cache: bool = True,
    learned: str = "auto",
    learn_size: int = 0,
    max_bad_fraction: float = 0.05,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Does synthesis help? From a folder with a rare class to a measured verdict per class.

    Args:
        data: class folders, a .csv or .jsonl list, or a COCO .json; give the training part of your data.
        rare: the class or classes that matter, e.g. --rare crack or --rare '[crack, hole]'.
        out: folder for generator/, renders/, report.json, report.html and groups.csv.
        masks: folder of masks that mirrors the images' layout.
        groups: CSV with columns file,group; images of one group (part, scene, patient) stay together.
        group_pattern: regular expression on image names whose first group is the group.
        good: the defect-free class; guessed when not given.
        rare_groups: pretend that only so many groups of the rare classes exist in training; the rest serves the oracle.
        draws: repetitions with other folds.
        folds: test folds per draw.
        synthetic: synthetic images of a class in each comparison.
        render: synthetic images of each class in renders/.
        minutes: time budget; what composition leaves of it trains a learned generator in each cell, if that is 2 minutes for each.
        seed: of everything.
        workers: processes for fitting.
        learner: frozen or finetune.
        others: also give verdicts for the classes that were not named.
        dense: also measure a dense head taught by the masks, as a rival.
        cache: keep features of real images on disk ($VISYNTH_CACHE, else the user's cache folder).
        learned: auto, none, inpaint (masks), diffusion (whole images) or projection (variations of real images by a StyleGAN2): the generator to train beside composition.
        learn_size: pixels that the learned generator works on; 0 chooses.
        max_bad_fraction: share of unusable files up to which they are left out.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.data.reading import read_images
    from visynth.trial import run_trial
    from visynth.trial_cells import TrialOptions

    images = read_images(
        data, masks=masks, groups=groups, group_pattern=group_pattern, max_bad_fraction=max_bad_fraction
    )
    options = TrialOptions(
        rare_groups, draws, folds, synthetic, minutes, seed, workers, learner, others, dense, cache, learned, learn_size
    )
    grouped = groups is not None or group_pattern is not None or any(item.group for item in images.items)
    report = run_trial(
        images,
        rare,
        out,
        options=options,
        good=good,
        grouped=grouped,
        subject=_subject(data),
        render=render,
        say=_say(quiet),
    )
    _verdicts(report, json)
    return 0


def quickstart(out: str = "quickstart", minutes: float = 4.0, json: bool = False, quiet: bool = False) -> int:
    """A trial on a small built-in set: real textures, simulated defects.

    Args:
        out: folder for the data and the results.
        minutes: time budget.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.quickstart import quickstart as run

    report = run(out, minutes=minutes, say=_say(quiet))
    _verdicts(report, json)
    print(f"open {Path(out) / 'report.html'}", file=sys.stderr)
    return 0


def preflight(
    data: str,
    rare: list[str],
    masks: str | None = None,
    groups: str | None = None,
    group_pattern: str | None = None,
    good: str | None = None,
    out: str | None = None,
    max_bad_fraction: float = 0.05,
    json: bool = False,
) -> int:
    """Look at a set: files, groups, near-duplicates, leakage, which synthesizer suits each class.

    Args:
        data: class folders, a .csv or .jsonl list, or a COCO .json.
        rare: the class or classes that matter.
        masks: folder of masks that mirrors the images' layout.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        good: the defect-free class; guessed when not given.
        out: write groups.csv, the groups used or proposed, into this folder.
        max_bad_fraction: share of unusable files up to which they are left out.
        json: print JSON.
    """
    from visynth.data.reading import read_images
    from visynth.files import ensure_writable
    from visynth.preflight import preflight as run
    from visynth.preflight import write_groups

    images = read_images(
        data, masks=masks, groups=groups, group_pattern=group_pattern, max_bad_fraction=max_bad_fraction
    )
    found = run(
        images,
        rare,
        good=good,
        grouped=groups is not None or group_pattern is not None or any(i.group for i in images.items),
    )
    if out is not None:
        write_groups(ensure_writable(out) / "groups.csv", found.images)
    if json:
        print(
            dumps(
                {
                    "classes": images.counts(),
                    "groups": found.images.groups(),
                    "suits": found.suits,
                    "lines": found.leak_lines(),
                },
                indent=2,
            )
        )
        return 0
    for block in found.blocks():
        for line in block.get("lines", []):
            print(f"- {line}")
        for row in [block["columns"], *block["rows"]] if block["kind"] == "table" else []:
            print("  ".join(f"{cell!s:<12}" for cell in row))
    return 0


def fit_compose(
    data: str,
    out: str,
    masks: str | None = None,
    groups: str | None = None,
    group_pattern: str | None = None,
    good: str | None = None,
    classes: list[str] | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    without_masks: str | None = None,
    max_bad_fraction: float = 0.05,
    quiet: bool = False,
) -> int:
    """Make a composition generator: real defects by mask on defect-free images. No training.

    Args:
        data: class folders (with train/, val/, test/ above them if held out), a .csv or .jsonl list, or a COCO .json.
        out: the generator folder.
        masks: folder of masks that mirrors the images' layout.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        good: the defect-free class; guessed when not given.
        classes: defect classes to compose; by default all that can be.
        settings: per class, e.g. '{crack: {blend: feather, shift: 5}}' (method, blend, shift, feather, scale, flip, ring).
        without_masks: nsa or perlin, for classes without masks.
        max_bad_fraction: share of unusable files up to which they are left out.
        quiet: no progress.
    """
    from visynth.compose.settings import Settings
    from visynth.data.reading import read_images
    from visynth.fit import fit_compose as run

    images = read_images(
        data, masks=masks, groups=groups, group_pattern=group_pattern, max_bad_fraction=max_bad_fraction
    )
    own = {name: Settings.from_json(values) for name, values in (settings or {}).items()}
    fitted = run(images, out, good=good, classes=classes, settings=own, without_masks=without_masks)
    say = _say(quiet)
    for name, why in fitted.left_out.items():
        say(f"left out: {name}: {why}")
    say(f"{len(fitted.bad_masks)} unreliable masks left out")
    print(f"{out}: makes {', '.join(fitted.generator.classes)}; digest {fitted.generator.digest[:16]}")
    return 0


def fit_pipeline(
    data: str,
    out: str,
    pipeline: str,
    size: int,
    mode: str = "image",
    masks: str | None = None,
    groups: str | None = None,
    group_pattern: str | None = None,
    classes: list[str] | None = None,
    prompts: dict[str, str] | None = None,
    negative_prompt: str = "",
    sampler: dict[str, Any] | None = None,
    max_bad_fraction: float = 0.05,
) -> int:
    """Make a generator of a foundation model's diffusers pipeline, starting from your training images. No training.

    Args:
        data: class folders (with train/, val/, test/ above them if held out), a .csv or .jsonl list, or a COCO .json.
        out: the generator folder.
        pipeline: folder that diffusers' save_pretrained wrote, or a hub id.
        size: of the made images, in pixels.
        mode: image (from real images of the class), inpaint (repaint masks of real images) or text.
        masks: folder of masks that mirrors the images' layout, for inpaint.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        classes: by default all.
        prompts: per class, e.g. '{crack: a photo of a cracked tile}'.
        negative_prompt: for all classes.
        sampler: steps, guidance, strengths, e.g. '{strengths: [0.25, 0.5]}'.
        max_bad_fraction: share of unusable files up to which they are left out.
    """
    from visynth.data.reading import read_images
    from visynth.fit import fit_pipeline as run

    images = read_images(
        data, masks=masks, groups=groups, group_pattern=group_pattern, max_bad_fraction=max_bad_fraction
    )
    made = run(
        images,
        out,
        pipeline,
        size=size,
        mode=mode,
        prompts=prompts,
        negative_prompt=negative_prompt,
        classes=classes,
        sampler=sampler,
    )
    print(f"{out}: makes {', '.join(made.classes)} from {len(made.anchors)} real images; digest {made.digest[:16]}")
    return 0


def fit_export(run: str, out: str, ema: float | None = None) -> int:
    """The generator of a run at its last checkpoint, with any width of the weight average.

    Args:
        run: folder of 'visynth fit -c ...' (trainer.default_root_dir).
        out: the generator folder.
        ema: relative width of the average, in (0, 0.28]: small follows the latest weights, large smooths; by default as configured.
    """
    from visynth.training import export

    print(export(run, out, ema))
    return 0


def fit_sweep(
    training: str,
    out: str = "sweep",
    factors: list[float] | None = None,
    kimg: float = 50.0,
    count: int = 300,
    quiet: bool = False,
) -> int:
    """Train a GAN for a short budget at several weights of its gradient penalty, and measure KID. What is finished is not done again.

    Args:
        training: configuration of 'visynth fit -c ...' with an adversarial module.
        out: folder of the runs.
        factors: of the automatic gamma; by default 0.25, 0.5, 1, 2 and 4.
        kimg: thousands of images that each run is shown.
        count: images that KID is measured with.
        quiet: no progress.
    """
    from visynth.sweep import FACTORS, sweep

    rows = sweep(training, out, factors or FACTORS, kimg, count, _say(quiet))
    best = rows[0]
    if best["kid"] is None:
        raise UsageError(f"the training diverged at every gamma; see {out}, and lower lr_g and lr_d.")
    print(
        f"{out}/sweep.json: gamma {best['gamma']:.4g} ({best['factor']:g} times the rule) has the lowest KID, {best['kid']:.4f}"
    )
    return 0


def render(
    generator: str,
    out: str,
    balance: str = "not majority",
    to: int | None = None,
    per_class: int | None = None,
    classes: list[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 2,
    encoding: str | None = None,
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Render a class-balanced set. Interrupted, the same command goes on and ends with the same bytes.

    Args:
        generator: generator folder, or a hub id.
        out: folder for the images; work in progress lies in OUT.work.
        balance: minority, not majority or all: which classes to fill up to the majority (counting their real images).
        to: fill up to this many images instead of up to the majority.
        per_class: exactly this many of each class, instead of balance.
        classes: only these classes.
        seed: of the whole set.
        batch_size: images sampled ahead of the encoders; it does not change a byte.
        workers: encoding processes; they do not change a byte.
        encoding: png or tiff; png where it can hold the channels.
        options: sampler options of the generator.
        device: where the generator runs.
        json: print the result as JSON.
        quiet: no progress.
    """
    from visynth.generator import load_generator
    from visynth.render.run import make_plan, render_set

    if batch_size < 1 or workers < 0:
        raise UsageError(f"batch_size must be at least 1 and workers at least 0, but got {batch_size} and {workers}.")
    made = load_generator(generator, device=device)
    plan = make_plan(
        made,
        balance=balance,
        to=to,
        per_class=per_class,
        classes=classes,
        seed=seed,
        options=options,
        encoding=encoding,
    )
    queue = -(-batch_size // plan.micro_batch)
    renders = render_set(made, plan, out, workers=workers, queue=queue, progress=None if quiet else _progress)
    told = {"out": out, "counts": renders.counts(), "root": renders.root(), "plan": plan.hash}
    print(dumps(told) if json else f"{out}: {renders.counts()}; root {told['root']}")
    return 0


def renders_verify(folder: str) -> int:
    """Check every file of a rendered set against its manifest.

    Args:
        folder: what 'visynth render' wrote.
    """
    from visynth.manifest import read_renders

    found = read_renders(folder, verify=True)
    print(f"{folder}: {len(found.records)} images as rendered; root {found.root()}")
    return 0


def renders_score(
    folder: str,
    data: str,
    groups: str | None = None,
    group_pattern: str | None = None,
    max_bad_fraction: float = 0.01,
    cache: bool = True,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Score every rendered image (does it look like its class, is it a copy), for WithSynthetic's keep=.

    Args:
        folder: what 'visynth render' wrote; scores.jsonl is written into it.
        data: the real images that the generator was fitted on, as for 'visynth fit'.
        groups: CSV with the columns file,group.
        group_pattern: regular expression whose first group is the image's group.
        max_bad_fraction: share of unusable files up to which they are left out.
        cache: keep features of real images on disk.
        json: print the summary as JSON.
        quiet: no progress.
    """
    from visynth.data.reading import read_images
    from visynth.manifest import read_renders
    from visynth.scores import score_renders

    renders = read_renders(folder)
    images = read_images(data, groups=groups, group_pattern=group_pattern, max_bad_fraction=max_bad_fraction)
    scores = score_renders(images, renders, cache=cache, say=_say(quiet))
    told = {}
    for name, count in renders.counts().items():
        own = [scores.images[record.file_name] for record in renders.records if record.label == name]
        if own:
            agreement = sum(score["agreement"] for score in own) / count
            told[name] = {"images": count, "agreement": round(agreement, 3), "copies": sum(s["copy"] for s in own)}
            told[name] |= {"real_agreement": round(scores.real[name], 3)} if name in scores.real else {}
    if json:
        print(dumps(told))
    for name, row in {} if json else told.items():
        real = f" (real images: {row['real_agreement']:.2f})" if "real_agreement" in row else ""
        print(f"{name}: {row['images']} images, mean agreement {row['agreement']:.2f}{real}, {row['copies']} copies")
    return 0


def renders_review(
    folder: str, accept: list[str] | None = None, reject: list[str] | None = None, reviewer: str = ""
) -> int:
    """Note a reviewer's decisions on rendered images; what is rejected is not mixed in.

    Args:
        folder: what 'visynth render' wrote; the decisions are added to review.jsonl in it.
        accept: files to accept, as the manifest names them (crack/000001.png).
        reject: files to reject.
        reviewer: who decides.
    """
    from visynth.manifest import read_renders, write_reviews

    decisions = {**dict.fromkeys(accept or [], "accept"), **dict.fromkeys(reject or [], "reject")}
    counts = write_reviews(read_renders(folder), decisions, reviewer)
    print(f"{folder}: {counts['accept']} accepted, {counts['reject']} rejected, {counts['open']} without a decision")
    return 0


def renders_export(folder: str, format: str, out: str, copy: bool = False) -> int:
    """Write boxes and masks of a rendered set for a detector.

    Args:
        folder: what 'visynth render' wrote.
        format: coco, yolo or voc.
        out: a new folder.
        copy: copy the images instead of linking them.
    """
    from visynth.manifest import read_renders
    from visynth.render.exports import export

    print(export(read_renders(folder), format, out, copy=copy))
    return 0


def evaluate(
    data: str,
    renders: str,
    out: str,
    groups: str | None = None,
    group_pattern: str | None = None,
    classes: list[str] | None = None,
    count: int | None = None,
    seeds: int = 5,
    learner: str = "frozen",
    workers: int = 2,
    cache: bool = True,
    max_bad_fraction: float = 0.05,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure a rendered set on real test images that its generator never saw.

    Args:
        data: the real images, held-out ones among them.
        renders: what 'visynth render' wrote.
        out: folder for report.json and report.html.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        classes: which to measure; by default all that can be.
        count: synthetic images per class; by default all there are.
        seeds: paired repetitions.
        learner: frozen or finetune.
        workers: processes for fitting.
        cache: keep features of real images on disk.
        max_bad_fraction: share of unusable files up to which they are left out.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.data.reading import read_images
    from visynth.evaluate import evaluate_renders

    images = read_images(data, groups=groups, group_pattern=group_pattern, max_bad_fraction=max_bad_fraction)
    report = evaluate_renders(
        images,
        renders,
        out,
        classes=classes,
        count=count,
        seeds=seeds,
        learner=learner,
        workers=workers,
        cache=cache,
        say=_say(quiet),
    )
    _verdicts(report, json)
    return 0


def gate(report: str, classes: list[str] | None = None, fail_on_reject: bool = False) -> int:
    """Turn a report into promote, reject or insufficient evidence, as JSON.

    Args:
        report: report.json or its folder.
        classes: the classes in question; by default all that were measured.
        fail_on_reject: exit 20 on reject and 21 on insufficient evidence.
    """
    from visynth.gate import EXIT_CODES, decide
    from visynth.report import read_report

    decision = decide(read_report(report), classes)
    print(dumps(decision.to_json(), indent=2))
    return EXIT_CODES[decision.outcome] if fail_on_reject else 0


def explore(
    generator: str,
    out: str = "explore",
    classes: list[str] | None = None,
    seeds: str = "0-15",
    frames: int = 24,
    side: int = 128,
    animation: str = "webp",
    device: str = "cpu",
) -> int:
    """Look at a generator: a sheet of seeds, and for GANs truncation, ways between pictures and an animation.

    Args:
        generator: generator folder, or a hub id.
        out: folder for the pictures.
        classes: only these classes.
        seeds: of the sheet, like 0-15 or 3,8,20.
        frames: from one seed to the next in the animation.
        side: of each picture, in pixels.
        animation: webp or gif.
        device: where the generator runs.
    """
    from visynth.explore import explore as run
    from visynth.generator import load_generator
    from visynth.seeds import parse_range

    for path in run(load_generator(generator, device), out, classes, parse_range(seeds), frames, side, animation):
        print(path)
    return 0


def project(
    generator: str,
    data: str,
    out: str,
    classes: list[str] | None = None,
    strength: float | None = None,
    steps: int = 300,
    fit: str = "squash",
    limit: int = 200,
    groups: str | None = None,
    group_pattern: str | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> int:
    """Project real images into a StyleGAN2 and write a generator of variations of them: for the rarest classes.

    Args:
        generator: folder of a StyleGAN2 generator.
        data: class folders, a .csv or .jsonl list, or a COCO .json; training images are projected.
        out: folder of the new generator.
        classes: only these classes.
        strength: from 0 (the projection itself) to 1 (any image of the class); by default as little as gives no copies.
        steps: of each projection.
        fit: crop, pad or squash: how other proportions become the generator's size.
        limit: images of a class, at most.
        groups: CSV with columns file,group; groups are drawn evenly.
        group_pattern: regular expression on image names whose first group is the group.
        device: where the generator runs.
        quiet: no progress.
    """
    from visynth.data.reading import read_images
    from visynth.generator import load_generator
    from visynth.project import project_images

    images = read_images(data, groups=groups, group_pattern=group_pattern)
    made = project_images(
        load_generator(generator, device), images, out, classes, strength, steps, fit, limit, _say(quiet)
    )
    print(f"{out}: variations of {made.card['projected images']} real images; look at {out}/projections.png")
    return 0


def import_stylegan2(pickle: str, out: str, classes: list[str] | None = None, which: str = "G_ema") -> int:
    """A public StyleGAN2 checkpoint as a generator folder, to sample from or to fine-tune. Nothing in the file is executed.

    Args:
        pickle: network-snapshot-....pkl of stylegan2-ada-pytorch, or of stylegan3's repository with its StyleGAN2 configuration.
        out: folder of the generator.
        classes: names in label order.
        which: G_ema (the averaged generator) or G.
    """
    from visynth.import_stylegan2 import import_stylegan2 as run

    print(run(pickle, out, classes, which))
    return 0


def doctor() -> int:
    """Check the installation: versions, weights of the default features, augmentation backend, cores."""
    import os

    from visynth.data.transforms import backend
    from visynth.files import cache_folder
    from visynth.metrics.features import efficientnet_lite0
    from visynth.report import environment

    for name, value in environment().items():
        print(f"{name:<26}{value}")
    print(f"{'cores':<26}{os.cpu_count()}")
    print(f"{'features':<26}{efficientnet_lite0().name}, weights found")
    print(f"{'classic augmentation':<26}{backend()}")
    print(f"{'feature cache':<26}{cache_folder()}")
    return 0


COMMANDS: dict[str, Callable[..., int | None]] = {
    "trial": trial,
    "quickstart": quickstart,
    "preflight": preflight,
    "fit.compose": fit_compose,
    "fit.export": fit_export,
    "fit.pipeline": fit_pipeline,
    "fit.sweep": fit_sweep,
    "render": render,
    "renders.verify": renders_verify,
    "renders.export": renders_export,
    "renders.score": renders_score,
    "renders.review": renders_review,
    "evaluate": evaluate,
    "gate": gate,
    "explore": explore,
    "project": project,
    "import-stylegan2": import_stylegan2,
    "doctor": doctor,
}
NESTED = {"fit": ("compose", "pipeline", "export", "sweep"), "renders": ("verify", "export", "score", "review")}


def _say(quiet: bool) -> Callable[[str], None]:
    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    return (lambda words: None) if quiet else say


def _progress(state: Mapping[str, Any]) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in state["counts"].items() if count)
    end = "\n" if state["done"] == state["total"] else "\r" if sys.stderr.isatty() else "\n"
    print(
        f"{state['done']}/{state['total']} images, {state['images/s']:.0f} images/s, {state['seconds left']:.0f} s left ({counts})",
        end=end,
        file=sys.stderr,
        flush=True,
    )


def _verdicts(report: Any, as_json: bool) -> None:
    if as_json:
        print(
            dumps(
                [{"class": v.label, "answer": v.answer, "reason": v.reason, "next": v.next} for v in report.verdicts],
                indent=2,
            )
        )
        return
    for verdict in report.verdicts:
        print(f"{verdict.headline}. {verdict.reason}." + (f"\n    next: {verdict.next}." if verdict.next else ""))


def _subject(data: str) -> str:
    path = Path(data).resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("images", "train") else path.name
