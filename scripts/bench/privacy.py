"""What privacy costs and what attacks find: generators at epsilon 1, 3, 10 and without, and one that knows its images by heart.

    python scripts/bench/privacy.py adult --out /tmp/privacy            # tables: masked by DP-SGD, noisy marginals
    python scripts/bench/privacy.py digits --out /tmp/privacy           # images: diffusion by DP-SGD; --device cuda
    python scripts/bench/privacy.py bccd_cells --size 32 --out /tmp/privacy

Half of the data are members, the other half controls; each line of ``<set>.jsonl`` is one generator, skipped where it is
present. Utility: trained on synthetic, tested on the controls. Attacks: members against controls.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from visynth.core.quiet import quiet_lightning
from visynth.data.reading import read_images
from visynth.lightning_modules import CGAN, Diffusion, GeneratorData, MeanEmbedding
from visynth.lightning_modules.facts import Pool, measure
from visynth.metrics.extractors import extractor
from visynth.metrics.kernel import kid
from visynth.privacy.diffusion_attacks import ATTACKS
from visynth.privacy.dp import DifferentialPrivacy
from visynth.privacy.membership import membership
from visynth.tabular import AIM, Masked, PrivateMarginals, TablePrivacy, infer, read_table
from visynth.tabular.attacks import attack
from visynth.tabular.fidelity import fidelity, summary
from visynth.tabular.training import default_trainer
from visynth.tabular.utility import train_on_synthetic

DATA = Path(os.environ.get("VISYNTH_DATA", "../shared/data"))
EPSILONS = (1.0, 3.0, 10.0, None)
ADULT = {"income": {"kind": "categorical", "values": ["<=50K", ">50K"]}}
HEART = 64  # images of the generator that knows them by heart


class Results:
    """One JSON line a generator."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.is_file() else []
        self.done = {json.loads(line)["name"] for line in lines}

    def add(self, name: str, row: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **row}) + "\n")
        print(name, json.dumps(row), flush=True)


def adult(args: argparse.Namespace, results: Results) -> None:
    frame = read_table(DATA / "tabular" / "adult_census.parquet").drop(columns="split")
    order = np.random.default_rng(args.seed).permutation(len(frame))
    half = len(frame) // 2
    train, held = (frame.iloc[part].reset_index(drop=True) for part in (order[:half], order[half : 2 * half]))
    schema = infer(frame, target="income")
    real, test = schema.table(train), schema.table(held)
    if "real rows" not in results.done:
        floor = train_on_synthetic({"real": real}, test, schema, "income")["real"][0]
        results.add("real rows", {"TSTR AUC": floor, **summary(fidelity(test, real, schema, args.seed))})
    for epsilon in EPSILONS:
        for kind in args.models or ("dp_marginals", "masked", "dp_aim"):
            name = f"{kind}, epsilon {epsilon or 'none'}"
            if name in results.done:
                continue
            privacy = (
                None
                if epsilon is None
                else TablePrivacy(epsilon=epsilon, domain=ADULT, physical_batch_size=args.physical)
            )
            begun = time.monotonic()
            if kind == "masked":
                options = (
                    {"steps": 2000}
                    if epsilon is None
                    else {"steps": args.steps, "batch_size": args.batch, "width": 64, "depth": 2, "most_bins": 32}
                )
                model: Any = Masked(**options, seed=args.seed)
                training = {"trainer": default_trainer(accelerator="gpu" if args.device == "cuda" else "cpu")}
            else:
                model, training = (AIM if kind == "dp_aim" else PrivateMarginals)(seed=args.seed), {}
            model.fit(train, target="income", privacy=privacy, members="none", **training)
            fitted = time.monotonic() - begun
            model = model.to("cpu") if kind == "masked" else model
            fake = schema.table(model.sample(half, seed=args.seed))
            losses = model.losses(train, seed=args.seed), model.losses(held, seed=args.seed)
            found = attack(real, test, fake, schema, seed=args.seed, losses=losses)
            row: dict[str, Any] = {"TSTR AUC": train_on_synthetic({"fake": fake}, test, schema, "income")["fake"][0]}
            row |= summary(fidelity(test, fake, schema, args.seed))
            row |= {m.attack: [m.auc, m.low, m.high, m.hits.get("0.01")] for m in found.memberships}
            row |= {"leaks": found.leaks, "fit seconds": fitted}
            row |= {"privacy": dict(model.fitted.privacy)}
            results.add(name, row)


def images(args: argparse.Namespace, results: Results) -> None:
    source = "sklearn:digits" if args.set == "digits" else str(DATA / "bccd_cells")
    size = 8 if args.set == "digits" else args.size
    data = GeneratorData.of(read_images(source), size, batch_size=64)
    data.setup()
    assert data.pool is not None
    classes = data.facts.classes
    order = np.random.default_rng(args.seed).permutation(len(data.pool.labels))
    half = len(order) // 2
    members, controls = (
        Pool(data.pool.images[part], data.pool.labels[part]) for part in (order[:half], order[half : 2 * half])
    )
    features = Features(args.set)
    tested = features(controls)
    if "real images" not in results.done:
        row = {"TSTR balanced accuracy": accuracy(features(members), members.labels, tested, controls.labels)}
        row |= {"KID": kid(tested, features(members)).value, "members": half}
        results.add("real images", row)
    for kind, epsilon in [(kind, e) for kind in args.models or TRAININGS for e in (None, "by heart", 10.0, 3.0, 1.0)]:
        name = f"{kind}, epsilon {epsilon or 'none'}" if epsilon != "by heart" else f"{HEART} images by heart"
        if name in results.done or (kind != "diffusion" and epsilon == "by heart"):
            continue
        few = np.arange(HEART if epsilon == "by heart" else half)
        own = Pool(members.images[few], members.labels[few])
        begun = time.monotonic()
        module, spent = TRAININGS[kind](own, classes, epsilon, args)
        seconds = time.monotonic() - begun
        generator: Any = module.generator()
        labels = np.arange(args.drawn) % len(classes)
        drawn = generator.sample(list(range(args.drawn)), labels.tolist()).images.numpy()
        fake = features(Pool(drawn, labels))
        row = {"TSTR balanced accuracy": accuracy(fake, labels, tested, controls.labels)}
        shares = np.bincount(controls.labels, minlength=len(classes))
        same = [
            np.flatnonzero(labels == c)[: max(int(args.drawn * shares[c] / shares.sum()), 1)]
            for c in range(len(classes))
        ]
        row |= {"KID": kid(tested, fake[np.concatenate(same)]).value, "fit seconds": seconds}
        row["spread within a class, of that of real images"] = spread(drawn, labels) / spread(
            controls.images, controls.labels
        )
        flat = [side.images.reshape(len(side.images), -1) / 255 for side in (Pool(drawn, labels), controls)]
        row["TSTR balanced accuracy, pixels"] = accuracy(flat[0], labels, flat[1], controls.labels)
        network = generator.network.to(args.device)
        other = Pool(controls.images[few], controls.labels[few])
        attacks: dict[str, Any] = (
            dict(ATTACKS) if kind == "diffusion" else {"nearest generated image, by pixels": Nearest(drawn)}
        )
        for attacked, score in attacks.items():
            a, b = (score(network, side.images, side.labels, args.seed) for side in (own, other))
            found = membership(attacked, a, b, args.seed)
            row[attacked] = [found.auc, found.low, found.high, found.hits.get("0.01"), found.leaks]
        row["privacy"] = spent
        results.add(name, row)


def trained(pool: Pool, classes: tuple[str, ...], epsilon: Any, args: argparse.Namespace) -> tuple[Diffusion, Any]:
    private = isinstance(epsilon, float)
    data = GeneratorData.of_pool(
        pool, measure(pool, classes), batch_size=min(128, len(pool.labels)), temper=1.0, seed=args.seed
    )
    options = {
        "dropout": 0.0,
        "augment": 0.0,
        "width": args.width,
        "snapshots": False,
        "warmup": 0 if private else 5000,
    }
    module = Diffusion(**options, seed=args.seed)  # type: ignore[arg-type]
    callback = None
    if private:
        callback = DifferentialPrivacy(
            epsilon, steps=args.steps, batch_size=min(args.batch, len(pool.labels)), physical_batch_size=args.physical,
            noise_multiplicity=args.multiplicity, most_noise=9.0,
        )  # fmt: skip
    trainer = pytorch_lightning.Trainer(
        max_epochs=-1, max_steps=-1 if private else args.plain_steps, accelerator="gpu" if args.device == "cuda" else "cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    with quiet_lightning():
        trainer.fit(module, data)
    return module.cpu().eval(), callback.record() if callback else {}


def embedded(pool: Pool, classes: tuple[str, ...], epsilon: Any, args: argparse.Namespace) -> tuple[MeanEmbedding, Any]:
    module = MeanEmbedding(epsilon=epsilon, seed=args.seed)
    data = GeneratorData.of_pool(pool, measure(pool, classes), batch_size=8, seed=args.seed)
    trainer = pytorch_lightning.Trainer(
        max_epochs=-1, accelerator="gpu" if args.device == "cuda" else "cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with quiet_lightning():
        trainer.fit(module, data)
    return module.cpu().eval(), module.privacy


def adversarial(pool: Pool, classes: tuple[str, ...], epsilon: Any, args: argparse.Namespace) -> tuple[CGAN, Any]:
    """A plain conditional GAN; privately five steps of the discriminator for one of the generator, and no penalty."""
    private = isinstance(epsilon, float)
    own: dict[str, Any] = {"gamma": 0.0, "d_steps": 5, "lr_d": 1e-3, "lr_g": 1e-3} if private else {}
    module = CGAN(width=32, width_d=32, allow_few=True, seed=args.seed, **own)
    data = GeneratorData.of_pool(pool, measure(pool, classes), batch_size=64, temper=1.0, seed=args.seed)
    callback = DifferentialPrivacy(epsilon, steps=args.gan_steps, batch_size=90, most_noise=9.0) if private else None
    trainer = pytorch_lightning.Trainer(
        max_epochs=-1, max_steps=-1 if private else 2 * args.gan_steps, accelerator="gpu" if args.device == "cuda" else "cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    with quiet_lightning():
        trainer.fit(module, data)
    return module.cpu().eval(), callback.record() if callback else {}


class Nearest:
    """Scores images by how near the nearest generated one is."""

    def __init__(self, drawn: Any) -> None:
        self.drawn = drawn.reshape(len(drawn), -1).astype(np.float64) / 255

    def __call__(self, network: Any, images: Any, labels: Any, seed: int) -> Any:
        from scipy.spatial.distance import cdist

        return -cdist(images.reshape(len(images), -1) / 255, self.drawn).min(axis=1)


class Features:
    """What images are judged by: pixels of digits, else the default features."""

    def __init__(self, name: str) -> None:
        self.extractor = None if name == "digits" else extractor()

    def __call__(self, pool: Pool) -> Any:
        if self.extractor is None:
            return pool.images.reshape(len(pool.images), -1).astype(np.float32) / 255
        from visynth.metrics.bank import FeatureBank

        bank = FeatureBank(self.extractor, resolutions=(112,))
        rows = bank.add([np.ascontiguousarray(image.transpose(1, 2, 0)) for image in pool.images], cache=False)
        return np.asarray(bank.get(112, "mean")[rows], np.float32)


def spread(images: Any, labels: Any) -> float:
    """Standard deviation of pixels within a class, averaged: a generator that gives one image of each class has none."""
    return float(np.mean([images[labels == c].astype(np.float64).std(axis=0).mean() for c in np.unique(labels)]))


def accuracy(x: Any, labels: Any, test: Any, truth: Any) -> float:
    """Balanced accuracy on real controls of a linear classifier of these features; nothing is chosen."""
    scale = StandardScaler().fit(x)
    model = LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced").fit(scale.transform(x), labels)
    return float(balanced_accuracy_score(truth, model.predict(scale.transform(test))))


TRAININGS = {"diffusion": trained, "embedding": embedded, "gan": adversarial}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("adult", "digits", "bccd_cells"))
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--steps", type=int, default=1000, help="of private trainings")
    parser.add_argument("--plain-steps", type=int, default=4000, help="of image trainings without privacy")
    parser.add_argument("--gan-steps", type=int, default=3000, help="of a GAN's discriminator")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--physical", type=int, default=1024)
    parser.add_argument("--multiplicity", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--drawn", type=int, default=2000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    results = Results(Path(args.out) / f"{args.set}.jsonl")
    (adult if args.set == "adult" else images)(args, results)


if __name__ == "__main__":
    main()
