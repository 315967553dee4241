"""What a training over sites gives up: joined, each site alone, FedAvg and the server's optimiser over gradients, equal images seen.

    python scripts/bench/federated.py --out /tmp/federated

Digits on two sites: nine of ten images of 0 to 4 in the north, nine of ten of 5 to 8 in the south, and 9 in the south alone. A
fifth of all images is held out. Each line of ``digits.jsonl`` is one training, skipped where it is present. Utility: a logistic
regression trained on 2,000 synthetic images, tested on the real held-out ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score

from visynth.core.quiet import quiet_lightning
from visynth.federated import Federated, FederatedOptions, Site
from visynth.federated.server import Rounds
from visynth.lightning_modules import Diffusion, GeneratorData
from visynth.lightning_modules.facts import Facts, Pool, measure
from visynth.metrics.kernel import kid

CLASSES = tuple(str(digit) for digit in range(10))
DRAWN, BATCH = 2000, 64
PLANS = {
    "fedavg, 20 local steps": {"algorithm": "fedavg", "local_steps": 20},
    "fedavg, 100 local steps": {"algorithm": "fedavg", "local_steps": 100},
    "fedopt, 1 local step": {"algorithm": "fedopt", "local_steps": 1},
    "fedopt, 5 local steps": {"algorithm": "fedopt", "local_steps": 5},
}


def pools(seed: int) -> tuple[dict[str, Pool], Pool]:
    """The sites' images, and those held out."""
    rng = np.random.default_rng(seed)
    flat, labels = load_digits(return_X_y=True)
    images = (flat.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    north = np.where(labels < 5, rng.random(len(labels)) < 0.9, rng.random(len(labels)) < 0.1) & (labels != 9)
    held = rng.random(len(labels)) < 0.2

    def pool(rows: Any) -> Pool:
        return Pool(images[rows], labels[rows].astype(np.int64))

    return {"north": pool(north & ~held), "south": pool(~north & ~held)}, pool(held)


def joined(sites: dict[str, Pool]) -> Pool:
    parts = list(sites.values())
    return Pool(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))


def trainer(steps: int, *callbacks: Any) -> pytorch_lightning.Trainer:
    return pytorch_lightning.Trainer(
        max_epochs=-1, max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), gradient_clip_val=None,
    )  # fmt: skip


def module(args: argparse.Namespace) -> Diffusion:
    return Diffusion(width=args.width, dropout=0.1, warmup=5000, snapshots=False, seed=args.seed)


def plain(pool: Pool, facts: Facts, args: argparse.Namespace) -> Diffusion:
    """A training on images at hand."""
    made = module(args)
    data = GeneratorData.of_pool(pool, facts, batch_size=2 * BATCH, seed=args.seed)
    trainer(args.images // (2 * BATCH)).fit(made, data)
    return made


def over_sites(sites: dict[str, Pool], plan: dict[str, Any], facts: Facts, args: argparse.Namespace) -> Diffusion:
    options = FederatedOptions(sites={name: {} for name in sites}, **plan)
    here = {
        name: Site(name, module(args), GeneratorData.of_pool(pool, facts, batch_size=BATCH, seed=args.seed), options,
                   {"accelerator": "cpu"})
        for name, pool in sites.items()
    }  # fmt: skip
    made, images = module(args), options.local_steps * BATCH
    server = Federated(lambda message, names: {n: here[n].answer(message) for n in names}, options, facts, images)
    trainer(args.images // (images * len(sites)), server).fit(made, Rounds(facts))
    return made


def measured(made: Diffusion, held: Pool, args: argparse.Namespace) -> dict[str, Any]:
    labels = np.arange(DRAWN) % 10
    drawn = made.generator().sample(list(range(DRAWN)), labels.tolist()).images.numpy()
    fake, real = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (drawn, held.images))
    fitted = LogisticRegression(max_iter=2000).fit(fake, labels)
    recalls = recall_score(held.labels, fitted.predict(real), average=None)
    return {
        "TSTR balanced accuracy": float(np.mean(recalls)),
        "recall of 0 to 4": float(np.mean(recalls[:5])),
        "recall of 5 to 8": float(np.mean(recalls[5:9])),
        "recall of 9": float(recalls[9]),
        "KID": kid(real, fake).value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("/tmp/federated"))
    parser.add_argument("--images", type=int, default=256_000, help="that each training sees")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "digits.jsonl"
    done = {json.loads(line)["name"] for line in path.read_text().splitlines()} if path.is_file() else set()
    sites, held = pools(args.seed)
    whole = joined(sites)
    facts = measure(whole, CLASSES)
    public = facts.public()
    trainings: dict[str, Any] = {
        "joined, measured mean and deviation": lambda: plain(whole, facts, args),
        "joined": lambda: plain(whole, public, args),
        "north alone": lambda: plain(sites["north"], public, args),
        "south alone": lambda: plain(sites["south"], public, args),
        **{name: (lambda plan=plan: over_sites(sites, plan, public, args)) for name, plan in PLANS.items()},
    }
    for name, training in trainings.items():
        key = f"{name}, seed {args.seed}"
        if key in done:
            continue
        begun = time.monotonic()
        with quiet_lightning():
            made = training()
        row = {"name": key, "fit seconds": time.monotonic() - begun, **measured(made, held, args)}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
