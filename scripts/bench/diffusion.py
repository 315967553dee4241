"""What the learned generators do: a list of cells that each append one JSON line and are skipped when it is there.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/diffusion.py --data ../shared/data [--cells NAME ...]
    [--threads 1]

Cells (minutes on two cores): ``digits`` (4), ``neu_det`` (13), ``neu_det_20`` and ``neu_det_5`` (10 each),
``magnetic_tile`` (120). Sheets of samples go to the output folder: look at them. The tables in scripts/bench/README.md
are printed from the lines.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from visynth.callbacks import KIDCallback
from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast
from visynth.core import seeds as seeding
from visynth.core.pictures import grid, to_display, write_png
from visynth.core.report import Report, environment
from visynth.data.reading import read_images
from visynth.generators.diffusion import run_sampler, to_integers
from visynth.jobs.trial import measuring
from visynth.jobs.trial.flow import run_trial
from visynth.jobs.trial.options import TrialOptions
from visynth.lightning_modules import Diffusion
from visynth.lightning_modules.data import GeneratorData
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractors import extractor
from visynth.metrics.quality import Quality, per_class
from visynth.networks.unet import Denoiser

RARE_TILES = ["blowhole", "crack", "break"]


def trial_numbers(report: Report, names: list[str]) -> dict[str, Any]:
    return {
        v.label: {"answer": v.answer, "reason": v.reason, **dict(v.numbers)}
        for v in report.verdicts
        if v.label in names
    }


def magnetic_tile(data: Path, out: Path) -> dict[str, Any]:
    """Inpainting, composition and classic augmentation on identical draws, 3 tile groups of each rare class."""
    root = data / "magnetic_tile"
    images = read_images(root / "images", masks=root / "masks", groups=root / "groups.csv")
    options = TrialOptions(
        rare_groups=3, draws=5, folds=2, synthetic=60, minutes=90, others=False, dense=False, learned="inpaint"
    )
    report = run_trial(images, RARE_TILES, out / "magnetic_tile", options=options, grouped=True, progress=print)
    return {"classes": trial_numbers(report, RARE_TILES), "conditions": report.conditions}


def digits(data: Path, out: Path) -> dict[str, Any]:
    """Digits at 8 px, 3 minutes of training."""
    given = GeneratorData("sklearn:digits", 8, batch_size=128, held_out=0.2)
    return trained(given, Diffusion(width=32, blocks=2, augment=0.0), 3.0, out, "digits", 100)


def neu_det(data: Path, out: Path) -> dict[str, Any]:
    """Steel textures at 32 px, 10 minutes, and sampling beside diffusers' DDIM with 50 steps on the same network."""
    given = GeneratorData(str(data / "neu_det" / "annotations_coco.json"), 32, batch_size=64, held_out=0.2)
    module = Diffusion(width=32, blocks=1)
    found = trained(given, module, 10.0, out, "neu_det", 100)
    found["samplers"] = samplers(module, given, 60)
    found["plain diffusers training step, images/s"] = plain_step(module, given)
    return found


def trained(given: GeneratorData, module: Diffusion, minutes: float, out: Path, name: str, each: int) -> dict[str, Any]:
    """Train with the KID callback at its defaults; then KID, Frechet distance and copies per class against all real
    images."""
    watch = KIDCallback(cache=False)
    trainer = pytorch_lightning.Trainer(
        max_time={"seconds": round(60 * minutes)},
        max_epochs=-1,
        accelerator="cpu",
        default_root_dir=out / name,
        logger=False,
        callbacks=[watch, KeepLast()],
        plugins=[AtomicCheckpointIO()],
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.monotonic()
    trainer.fit(module, given)
    seconds = time.monotonic() - started
    module.export(out / name / "generator")
    classes = given.facts.classes
    labels = [k for k in range(len(classes)) for _ in range(each)]
    begun = time.monotonic()
    samples = module.sample(list(range(len(labels))), labels)
    rate = len(labels) / (time.monotonic() - begun)
    pictures = [samples.crop(i).permute(1, 2, 0).numpy() for i in range(len(samples))]
    write_png(
        out / f"{name}.png",
        grid([to_display(pictures[k * each + i]) for k in range(len(classes)) for i in range(12)], 12, 64),
    )
    made = {c: pictures[k * each : (k + 1) * each] for k, c in enumerate(classes)}
    return {
        "images": int(module.images_seen),
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "training images/s": round(int(module.images_seen) / (seconds - watch.seconds), 1),
        "sampling images/s": round(rate, 1),
        "callback share of the time": round(watch.seconds / seconds, 4),
        "quality": [q.to_json() for q in qualities(given, made)],
    }


def qualities(given: GeneratorData, made: dict[str, list[Any]]) -> list[Quality]:
    bank = FeatureBank(extractor(), resolutions=(112,), batch=16)
    pictures, labels, classes = given.reference()
    real_rows = bank.add(pictures, cache=False)
    rows = {name: bank.add(own, cache=False) for name, own in made.items()}
    features = bank.get(112, "mean")
    real = {name: features[real_rows[labels == k]] for k, name in enumerate(classes)}
    return per_class(real, {name: features[r] for name, r in rows.items()}, bank.name(112))


def samplers(module: Diffusion, given: GeneratorData, each: int) -> list[dict[str, Any]]:
    """Seconds and KID of our samplers and of diffusers' DDIM, on one network, the same noise and labels."""
    network = module.generator().network
    classes = given.facts.classes
    labels = torch.tensor([k for k in range(len(classes)) for _ in range(each)])
    noise = seeding.noise(range(len(labels)), (given.facts.channels, *given.facts.size), "bench")
    options = {"guidance": 1.0, "guidance_low": 0.0, "guidance_high": 5.0}
    ways: list[tuple[str, Callable[[Any, Any], Any]]] = [
        (f"dpm {n}", lambda z, y, n=n: run_sampler(network, z, y, None, steps=n, solver="dpm", **options))
        for n in (8, 12, 18)
    ]
    ways.append(("heun 18", lambda z, y: run_sampler(network, z, y, None, steps=18, solver="heun", **options)))
    ways.append(("diffusers DDIM 50", lambda z, y: ddim(network, z, y, 50)))
    found = []
    for name, way in ways:
        begun, pieces = time.monotonic(), []
        with torch.no_grad():
            for first in range(0, len(labels), 16):
                pieces.append(way(noise[first : first + 16], labels[first : first + 16]))
        seconds = time.monotonic() - begun
        images = to_integers(torch.cat(pieces) + network.mean, given.facts.dtype).permute(0, 2, 3, 1).numpy()
        whole = qualities(given, {c: list(images[(labels == k).numpy()]) for k, c in enumerate(classes)})[-1]
        found.append({"sampler": name, "images/s": round(len(labels) / seconds, 1), **whole.kid.to_json()})
        print(found[-1])
    return found


def ddim(network: Denoiser, noise: Any, labels: Any, steps: int) -> Any:
    """diffusers' DDIM (eta 0) on our network: its x is ours over sqrt(1 + sigma^2), for data of unit deviation."""
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    x, data = noise, network.sigma_data
    for t in scheduler.timesteps:
        alpha = float(scheduler.alphas_cumprod[t])
        sigma = ((1 - alpha) / alpha) ** 0.5
        ours = x / alpha**0.5
        clean = network(ours * data, torch.full((len(x),), sigma * data), labels) / data
        x = scheduler.step((ours - clean) / sigma, t, x, eta=0.0).prev_sample
    return x * data


def plain_step(module: Diffusion, given: GeneratorData, steps: int = 12) -> float:
    """images/s of a bare training loop as diffusers' examples have it: the same U-Net, epsilon loss, AdamW, nothing
    else."""
    network = copy.deepcopy(module.network).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    scheduler = DDPMScheduler()
    images = torch.from_numpy(given.pool.images[:64]).float() / 127.5 - 1
    labels = torch.from_numpy(given.pool.labels[:64])
    begun = 0.0
    for step in range(steps + 2):
        if step == 2:
            begun = time.monotonic()
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (64,))
        out = network.unet(scheduler.add_noise(images, noise, t), t, class_labels=network.of_class(labels)).sample
        torch.nn.functional.mse_loss(out, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return round(64 * steps / (time.monotonic() - begun), 1)


def neu_trial(count: int) -> Callable[[Path, Path], dict[str, Any]]:
    """The expected "no": scratches with few images, on a set that pretrained features nearly solve."""

    def run(data: Path, out: Path) -> dict[str, Any]:
        measuring.LEAST = 0.5  # the time that two cores leave; the report says how long each was trained
        images = read_images(data / "neu_det" / "annotations_coco.json")
        options = TrialOptions(
            rare_groups=count,
            draws=3,
            folds=2,
            minutes=10,
            others=False,
            dense=False,
            learned="diffusion",
            learn_size=32,
        )
        report = run_trial(images, ["scratches"], out / f"neu_det_{count}", options=options, progress=print)
        return {"classes": trial_numbers(report, ["scratches"]), "conditions": report.conditions}

    return run


CELLS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "digits": digits,
    "neu_det": neu_det,
    "neu_det_20": neu_trial(20),
    "neu_det_5": neu_trial(5),
    "magnetic_tile": magnetic_tile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VISYNTH_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    file = given.out / "diffusion.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {line["cell"] for line in lines}
    for name in given.cells:
        if name in done:
            continue
        started = time.monotonic()
        found = CELLS[name](given.data, given.out)
        line = {
            "cell": name,
            "seconds": round(time.monotonic() - started),
            "threads": torch.get_num_threads(),
            **found,
            **environment(),
        }
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
