"""What the GANs do: cells that append one JSON line each, are skipped when it is there, and go on from their last
checkpoint.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/gan_cells.py --data ../shared/data [--cells NAME ...]
    [--threads 1]

``neu_*`` (10 minutes each): NEU-DET at 32 px, generators of at most 1.5 million parameters. ``digits_*`` (5 minutes
each): digits at 16 px with one class cut to 20 images, plain conditioning against options for few images, three seeds;
``*_x3`` three times as long. ``magnetic_tile`` (100): variations of projected defects against composition. KID is
measured with a small classifier that was trained on the real images alone, before any generator and by none of them.
``--tables`` prints what there is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from torch import nn

from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast
from visynth.core.pictures import grid, to_display, write_png
from visynth.core.report import environment
from visynth.data.reading import read_images
from visynth.jobs.trial.flow import run_trial
from visynth.jobs.trial.options import TrialOptions
from visynth.lightning_modules import CGAN, BigGAN, Diffusion, StyleGAN2
from visynth.lightning_modules.data import GeneratorData
from visynth.lightning_modules.facts import Pool, measure
from visynth.metrics.quality import Quality, per_class
from visynth.metrics.support import recall

STYLE = {"base": 2048, "most": 128, "z_dim": 128, "w_dim": 128}
NEU: dict[str, Callable[[], Any]] = {
    "stylegan2": lambda: StyleGAN2(**STYLE, shared=8),
    "projected": lambda: StyleGAN2(
        **STYLE,
        discriminator="projected",
        view=64,
        loss="hinge",
        gamma=0.0,
        augment="diffaugment",
        lr_g=2e-3,
        lr_d=2e-3,
    ),
    "cgan": lambda: CGAN(width=32, width_d=32, gamma=1.0),
    "biggan": lambda: BigGAN(width=24, width_d=24, z_dim=80, shared=64, lr_g=2e-4, lr_d=4e-4),
    "diffusion": lambda: Diffusion(width=32, snapshots=False),
}
RARE, FEW = "8", 20
LONG_TAIL: dict[str, dict[str, Any]] = {
    "plain": {},
    "transition": {"transition": [0.08, 0.16]},
    "noise": {"class_noise": 0.5},
    "balanced": {"temper": 0.0},
    # Half of a digit's pixels a side are shared with the other classes' digits here: where UTLO does not belong.
    "transition_shared": {"transition": [0.08, 0.16], "shared": 8},
    "shared_noise": {"shared": 8, "class_noise": 0.5},
}
KIMG = 40.0  # what five minutes show at 16 px; the transition is in parts of it


# -- the judge ----------------------------------------------------------------------------------------------------------


class Judge(nn.Module):
    """A small classifier of the real images; its last features are what KID is measured with."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = [channels, 32, 64, 128]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.Conv2d(b, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU())
        self.out = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.features(images))


def judge(pool: Pool, classes: int, path: Path, epochs: int = 40) -> tuple[Judge, float]:
    """Trained on four fifths of the images (or read back); its accuracy on the rest."""
    images = torch.from_numpy(pool.images).float() / 127.5 - 1
    labels = torch.from_numpy(pool.labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    torch.manual_seed(0)
    network = Judge(images.shape[1], classes)
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * -(-len(rest) // 64))
        for _ in range(epochs):
            for rows in rest[torch.randperm(len(rest))].split(64):
                batch = images[rows]
                shift = torch.randint(-2, 3, (2,)).tolist()
                loss = nn.functional.cross_entropy(network(batch.roll(shift, (2, 3))), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        torch.save(network.state_dict(), path)
    network.eval()
    with torch.no_grad():
        accuracy = float((network(images[held]).argmax(1) == labels[held]).float().mean())
    return network, accuracy


def features(network: Judge, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        values = torch.from_numpy(images).float() / 127.5 - 1
        return torch.cat([network.features(part) for part in values.split(256)]).numpy()


# -- cells --------------------------------------------------------------------------------------------------------------


def train(module: Any, data: GeneratorData, minutes: float, folder: Path) -> float:
    """Train, going on from the last checkpoint; seconds of this start."""
    trainer = pytorch_lightning.Trainer(
        max_time={"seconds": round(60 * minutes)},
        max_epochs=-1,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        callbacks=[KeepLast(minutes=1)],
        plugins=[AtomicCheckpointIO()],
        gradient_clip_val=1.0 if module.automatic_optimization else None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = KeepLast.path(folder)
    started = time.monotonic()
    trainer.fit(module, data, ckpt_path=str(start) if start.is_file() else None, weights_only=True)
    return time.monotonic() - started


def samples_of(module: Any, each: int) -> tuple[np.ndarray, np.ndarray, float]:
    classes = len(module.facts.classes)
    labels = [k for k in range(classes) for _ in range(each)]
    module.sample([0], [0])
    begun = time.monotonic()
    images = module.sample(list(range(len(labels))), labels).images.numpy()
    return images, np.array(labels), len(labels) / (time.monotonic() - begun)


def keep(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A sheet to look at, and the images themselves to be judged again."""
    write_sheet(path.with_suffix(".png"), images, labels)
    np.savez_compressed(path.with_suffix(".npz"), images=images, labels=labels)


def write_sheet(path: Path, images: np.ndarray, labels: np.ndarray, columns: int = 12) -> None:
    chosen = [images[labels == k][i] for k in sorted(set(labels.tolist())) for i in range(columns)]
    write_png(path, grid([to_display(picture.transpose(1, 2, 0)) for picture in chosen], columns, 64))


def neu(name: str) -> Callable[[Path, Path], dict[str, Any]]:
    def run(data: Path, out: Path) -> dict[str, Any]:
        batch = 64 if name in ("diffusion", "biggan", "cgan") else 32
        given = GeneratorData(str(data / "neu_det" / "annotations_coco.json"), 32, batch_size=batch, held_out=0.2)
        given.setup()
        pool, classes = given.pool, given.facts.classes
        assert pool is not None
        critic, accuracy = judge(pool, len(classes), out / "judge_neu.pt")
        module = NEU[name]()
        train(module, given, 10.0, out / f"neu_{name}")
        images, labels, rate = samples_of(module, 100)
        keep(out / f"neu_{name}", images, labels)
        real, made = features(critic, pool.images), features(critic, images)
        found = qualities(real, pool.labels, made, labels, classes)
        right = float((critic.out(torch.from_numpy(made)).argmax(1).numpy() == labels).mean())
        generator = module.gan.generator_ema if hasattr(module, "gan") else module.network
        return {
            "images": int(module.images_seen),
            "parameters": sum(p.numel() for p in generator.parameters()),
            "training images/s": round(int(module.images_seen) / 600, 1),
            "sampling images/s": round(rate, 1),
            "accuracy": [
                round(accuracy, 3),
                round(right, 3),
            ],  # of the judge on real images that it did not see, and on synthetic ones
            "quality": [q.to_json() for q in found],
        }

    return run


def qualities(real: Any, real_labels: Any, made: Any, labels: Any, classes: tuple[str, ...]) -> list[Quality]:
    """KID of features in units of the real ones' deviation: the judge's own scale means nothing."""
    scale = real.std(axis=0) + 1e-6
    real, made = (real - real.mean(axis=0)) / scale, (made - real.mean(axis=0)) / scale
    sides = [
        {name: rows[marks == k] for k, name in enumerate(classes)}
        for rows, marks in ((real, real_labels), (made, labels))
    ]
    return per_class(sides[0], sides[1], "judge", frechet=False)


def long_tail(name: str, seed: int, times: int = 1) -> Callable[[Path, Path], dict[str, Any]]:
    def run(data: Path, out: Path) -> dict[str, Any]:
        whole = GeneratorData("sklearn:digits", 16)
        whole.setup()
        pool, classes = whole.pool, whole.facts.classes
        assert pool is not None
        critic, accuracy = judge(pool, len(classes), out / "judge_digits.pt")
        rare = np.flatnonzero(pool.labels == classes.index(RARE))
        kept = np.random.default_rng(seed).permutation(rare)[:FEW]
        rows = np.sort(np.concatenate([np.flatnonzero(pool.labels != classes.index(RARE)), kept]))
        few = Pool(pool.images[rows], pool.labels[rows])
        options = dict(LONG_TAIL[name])
        temper = options.pop("temper", 0.5)  # the data's own default
        given = GeneratorData.of_pool(few, measure(few, classes), batch_size=32, seed=seed, temper=temper)
        # Digits turned or mirrored are other digits.
        kinds = ["shift", "scale", "stretch", "move", "brightness", "contrast"]
        module = StyleGAN2(
            base=1024,
            most=64,
            z_dim=64,
            w_dim=64,
            kimg=times * KIMG,
            augment_kinds=kinds,
            seed=seed,
            allow_few=True,
            **options,
        )
        cell = f"digits_{name}_{seed}" + (f"_x{times}" if times > 1 else "")
        seconds = train(module, given, 5.0 * times, out / cell)
        images, labels, _ = samples_of(module, 150)
        keep(out / cell, images, labels)
        real, made = features(critic, pool.images), features(critic, images)
        found = qualities(real, pool.labels, made, labels, classes)
        rest = pool.images[np.setdiff1d(rare, kept)]
        return {
            "images": int(module.images_seen),
            "seconds": round(seconds),
            "near copies": near_copies(images[labels == classes.index(RARE)], pool.images[kept], rest),
            "judge's accuracy": round(accuracy, 3),
            "recall": {c: round(recall(real[pool.labels == k], made[labels == k]), 3) for k, c in enumerate(classes)},
            "made of its class": {
                c: round(float((critic.out(torch.from_numpy(made[labels == k])).argmax(1) == k).float().mean()), 3)
                for k, c in enumerate(classes)
            },
            "quality": [q.to_json() for q in found],
        }

    return run


def near_copies(made: np.ndarray, seen: np.ndarray, others: np.ndarray) -> float:
    """Share of synthetic images that are nearer to one that was trained on than 99 % of other real images of the class are,
    by pixels."""

    def nearest(images: np.ndarray) -> np.ndarray:
        a, b = (part.astype(np.float32).reshape(len(part), -1) for part in (images, seen))
        return np.sqrt(((a[:, None] - b[None]) ** 2).mean(axis=2)).min(axis=1)

    return round(float((nearest(made) < np.quantile(nearest(others), 0.01)).mean()), 3)


def magnetic_tile(data: Path, out: Path) -> dict[str, Any]:
    """Variations of projected defects, composition and classic augmentation on identical draws, 3 tile groups of each
    rare class."""
    root = data / "magnetic_tile"
    images = read_images(root / "images", masks=root / "masks", groups=root / "groups.csv")
    options = TrialOptions(
        rare_groups=3,
        draws=3,
        folds=2,
        synthetic=60,
        minutes=80,
        others=False,
        dense=False,
        learned="projection",
        learn_size=64,
    )
    rare = ["blowhole", "crack", "break"]
    report = run_trial(images, rare, out / "magnetic_tile", options=options, grouped=True, progress=print)
    told = {
        v.label: {"answer": v.answer, "reason": v.reason, **dict(v.numbers)} for v in report.verdicts if v.label in rare
    }
    return {"classes": told, "conditions": report.conditions}


CELLS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    **{f"neu_{name}": neu(name) for name in NEU},
    **{f"digits_{name}_{seed}": long_tail(name, seed) for seed in range(3) for name in LONG_TAIL},
    **{f"digits_{name}_0_x3": long_tail(name, 0, 3) for name in ("plain", "balanced")},
    "magnetic_tile": magnetic_tile,
}


def tables(lines: dict[str, dict[str, Any]]) -> None:
    rows = {name: lines[f"neu_{name}"] for name in NEU if f"neu_{name}" in lines}
    if rows:
        names = [q["class"] for q in next(iter(rows.values()))["quality"]]
        print(
            f"| generator | parameters | images seen | images/s training, sampling | {' | '.join(names)} | of its "
            "class |"
        )
        print("|---|---|---|---|" + "---|" * (len(names) + 1))
        for name, row in rows.items():
            kids = [f"{q['kid']['value']:.3f}" for q in row["quality"]]
            print(
                f"| {name} | {row['parameters'] / 1e6:.2f} M | {row['images']:,} | {row['training images/s']}, "
                f"{row['sampling images/s']} | "
                f"{' | '.join(kids)} | {row['accuracy'][1]:.2f} |"
            )
        first = next(iter(rows.values()))
        print(
            "| real halves (95th percentile) | | | | "
            f"{' | '.join(str(q['kid'].get('null_high')) for q in first['quality'])} | {first['accuracy'][0]:.2f} |"
        )
    for name in LONG_TAIL:
        cells = [f"digits_{name}_{seed}{times}" for times in ("", "_x3") for seed in range(3)]
        for run in [lines[cell] for cell in cells if cell in lines]:
            kid = {q["class"]: q["kid"]["value"] for q in run["quality"]}
            others = [c for c in run["recall"] if c != RARE]
            print(
                f"| {name} | {run['images']:,} | {run['recall'][RARE]:.2f} | {kid[RARE]:.3f} | "
                f"{run['made of its class'][RARE]:.2f} | "
                f"{np.mean([run['recall'][c] for c in others]):.2f} | {np.mean([kid[c] for c in others]):.3f} | "
                f"{run['near copies']:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("bench_gan"))
    parser.add_argument("--cells", nargs="*", default=list(CELLS))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tables", action="store_true")
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    path = told.out / "cells.jsonl"
    lines = {line["cell"]: line for line in map(json.loads, path.read_text().splitlines())} if path.is_file() else {}
    if told.tables:
        tables(lines)
        return
    if told.threads:
        torch.set_num_threads(told.threads)
    for name in told.cells:
        if name in lines:
            continue
        found = CELLS[name](told.data, told.out)
        line = {"cell": name, "threads": torch.get_num_threads(), "environment": environment(), **found}
        with path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(name, json.dumps({k: v for k, v in found.items() if k != "quality"}), flush=True)


if __name__ == "__main__":
    main()
