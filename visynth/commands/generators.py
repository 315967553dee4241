"""Making generators: without training, from a pipeline, from a run, by a sweep, from a public checkpoint, of variations
of real images."""

from __future__ import annotations

from typing import Any, Literal

from visynth.commands.options import DataOptions
from visynth.commands.printing import printer
from visynth.core.errors import UsageError


def fit_compose(
    data: DataOptions,
    out: str,
    good: str | None = None,
    classes: list[str] | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    without_masks: Literal["nsa", "perlin"] | None = None,
    quiet: bool = False,
) -> int:
    """Make a composition generator: real defects by mask on defect-free images. No training.

    Args:
        data: the real images, and how to read them.
        out: the generator folder.
        good: the defect-free class; guessed when not given.
        classes: defect classes to compose; by default all that can be.
        settings: per class, e.g. '{crack: {blend: feather, shift: 5}}' (method, blend, shift, feather, scale, flip,
            ring).
        without_masks: nsa or perlin, for classes without masks.
        quiet: no progress.
    """
    from visynth.generators.compose_settings import Settings
    from visynth.jobs.make import fit_compose as run

    images = data.read()
    own = {name: Settings.from_json(values) for name, values in (settings or {}).items()}
    fitted = run(images, out, good=good, classes=classes, settings=own, without_masks=without_masks)
    progress = printer(quiet)
    for name, why in fitted.left_out.items():
        progress(f"left out: {name}: {why}")
    progress(f"{len(fitted.bad_masks)} unreliable masks left out")
    print(f"{out}: makes {', '.join(fitted.generator.classes)}; digest {fitted.generator.digest[:16]}")
    return 0


def fit_pipeline(
    data: DataOptions,
    out: str,
    pipeline: str,
    size: int,
    mode: Literal["image", "inpaint", "text"] = "image",
    classes: list[str] | None = None,
    prompts: dict[str, str] | None = None,
    negative_prompt: str = "",
    sampler: dict[str, Any] | None = None,
) -> int:
    """Make a generator of a foundation model's diffusers pipeline, starting from your training images. No training.

    Args:
        data: the real images, and how to read them.
        out: the generator folder.
        pipeline: folder that diffusers' save_pretrained wrote, or a hub id.
        size: of the synthetic images, in pixels.
        mode: image (from real images of the class), inpaint (repaint masks of real images) or text.
        classes: by default all.
        prompts: per class, e.g. '{crack: a photo of a cracked tile}'.
        negative_prompt: for all classes.
        sampler: steps, guidance, strengths, e.g. '{strengths: [0.25, 0.5]}'.
    """
    from visynth.jobs.make import fit_pipeline as run

    images = data.read()
    generator = run(
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
    print(
        f"{out}: makes {', '.join(generator.classes)} from {len(generator.start_images)} real images; digest {generator.digest[:16]}"
    )
    return 0


def fit_export(run: str, out: str, ema: float | None = None) -> int:
    """The generator of a run at its last checkpoint, with any width of the weight average.

    Args:
        run: folder of 'visynth fit -c ...' (trainer.default_root_dir).
        out: the generator folder.
        ema: relative width of the average, in (0, 0.28]: small follows the latest weights, large smooths; by default as
            configured.
    """
    from visynth.jobs.train import export

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
    """Train a GAN for a short budget at several weights of its gradient penalty, and measure KID. What is finished is
    not done again.

    Args:
        training: configuration of 'visynth fit -c ...' with an adversarial module.
        out: folder of the runs.
        factors: of the automatic gamma; by default 0.25, 0.5, 1, 2 and 4.
        kimg: thousands of images that each run is shown.
        count: images that KID is measured with.
        quiet: no progress.
    """
    from visynth.jobs.sweep import FACTORS, sweep

    rows = sweep(training, out, factors or FACTORS, kimg, count, printer(quiet))
    best = rows[0]
    if best["kid"] is None:
        raise UsageError(f"the training diverged at every gamma; see {out}, and lower lr_g and lr_d.")
    print(
        f"{out}/sweep.json: gamma {best['gamma']:.4g} ({best['factor']:g} times the rule) has the lowest KID, "
        f"{best['kid']:.4f}. Train with it by --model.init_args.gamma, and with --model.init_args.chosen_by as sweep.json has "
        "it: features that chose cannot judge"
    )
    return 0


def fit_job(training: str, out: str) -> int:
    """Write the NVFlare job of a federated training, to submit to real sites. It carries the configuration, and no code and no
    path of a site.

    Args:
        training: configuration of 'visynth fit -c ...' with a federated part.
        out: folder of the job.
    """
    from visynth.jobs.flare_job import make_job

    print(
        f"{make_job(training, out)}: submit it with 'nvflare job submit -j {out}'; configs/deploy/nvflare has what sites need"
    )
    return 0


def project(
    generator: str,
    data: DataOptions,
    out: str,
    classes: list[str] | None = None,
    strength: float | None = None,
    steps: int = 300,
    fit: Literal["crop", "pad", "squash"] = "squash",
    limit: int = 200,
    device: str = "cpu",
    quiet: bool = False,
) -> int:
    """Project real images into a StyleGAN2 and write a generator of variations of them: for the rarest classes.

    Args:
        generator: folder of a StyleGAN2 generator.
        data: the real images, and how to read them.
        out: folder of the new generator.
        classes: only these classes.
        strength: from 0 (the projection itself) to 1 (any image of the class); by default as little as leaves at most 5
            % near-copies in any class.
        steps: of each projection.
        fit: crop, pad or squash: how other proportions become the generator's size.
        limit: images of a class, at most.
        device: where the generator runs.
        quiet: no progress.
    """
    from visynth.generators.base import load_generator
    from visynth.jobs.project import project_images

    images = data.read()
    projected = project_images(
        load_generator(generator, device), images, out, classes, strength, steps, fit, limit, printer(quiet)
    )
    print(f"{out}: variations of {projected.card['projected images']} real images; look at {out}/projections.png")
    return 0


def import_stylegan2(
    pickle: str, out: str, classes: list[str] | None = None, which: Literal["G_ema", "G"] = "G_ema"
) -> int:
    """A public StyleGAN2 checkpoint as a generator folder, to sample from or to fine-tune. Nothing in the file is
    executed.

    Args:
        pickle: network-snapshot-....pkl of stylegan2-ada-pytorch, or of stylegan3's repository with its StyleGAN2
            configuration.
        out: folder of the generator.
        classes: names in label order.
        which: G_ema (the averaged generator) or G.
    """
    from visynth.generators.stylegan2_import import import_stylegan2 as run

    print(run(pickle, out, classes, which))
    return 0
