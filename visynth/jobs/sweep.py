"""``visynth fit sweep``: the same GAN training at several weights of the gradient penalty, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core.errors import Diverged, UsageError
from visynth.core.files import readable_json
from visynth.core.folders import claim_files, put_files
from visynth.core.progress import Progress, no_progress
from visynth.metrics.kernel import FEWEST

SUMMARY = "sweep.json"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def sweep(
    config: str | Path,
    out: str | Path,
    factors: Sequence[float] = FACTORS,
    kimg: float = 50.0,
    count: int = 300,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Train for a short budget at each gamma and measure KID; what is finished is not done again.

    The best weight depends on the data more than on anything else (a larger one is stabler and less varied), and a
    short run tells the ones that fail from the ones that do not.

    Args:
        config: of ``visynth fit -c``, with an adversarial module.
        out: folder of the runs, and of ``sweep.json``.
        factors: of the automatic gamma, 2e-4 size^2 / images of a step.
        kimg: budget of each run.
        count: images over all classes that KID is measured with.
        progress: called with a line for each run.

    Returns:
        A dict for each gamma, with the lowest KID first; None where the training diverged. Each run's generator, and
        ``sweep.json``, name the features of KID: they chose, so they cannot judge (:mod:`visynth.core.judges`).

    Raises:
        UsageError: a configuration without gamma, or factors that are not positive.
    """
    from visynth.generators.base import load_generator
    from visynth.jobs.configured import configured, connect
    from visynth.jobs.train import fit

    if not factors or min(factors) <= 0:
        raise UsageError(f"factors must be positive, but got {list(factors)}.")
    cli = configured(["-c", str(config)], logger=False)
    if not hasattr(cli.model, "automatic_gamma"):
        raise UsageError(f"{config} trains a {type(cli.model).__name__}, which has no gamma to choose.")
    root = Path(out)
    claim_files(root, [SUMMARY])
    connect(cli)
    auto = cli.model.automatic_gamma(cli.datamodule.facts)
    kid_evaluator = KIDEvaluator(cli.datamodule, count)
    rows: list[dict[str, Any]] = []
    for factor in factors:
        gamma, run = factor * auto, root / f"gamma_x{factor:g}"
        words = [
            *("-c", str(config), "--trainer.default_root_dir", str(run), "--trainer.devices", "1"),
            *("--model.init_args.gamma", repr(gamma), "--model.init_args.kimg", repr(float(kimg))),
            *("--trainer.max_steps", "-1"),
            *(("--model.init_args.chosen_by", f"[{kid_evaluator.name}]") if "chosen_by" in cli.model.hparams else ()),
        ]
        value: float | None = None
        try:
            code = fit(words)
            if code:
                raise SystemExit(code)  # interrupted: the same command goes on
            value = kid_evaluator.kid(load_generator(run / "generator"))
        except Diverged as error:
            progress(f"gamma {gamma:.4g} ({factor:g} times the rule): {error}")
        rows.append({"factor": factor, "gamma": gamma, "kid": value, "run": str(run)})
        if value is not None:
            progress(f"gamma {gamma:.4g} ({factor:g} times the rule): KID {value:.4f}")
    rows.sort(key=lambda row: math.inf if row["kid"] is None else row["kid"])
    summary = {"auto gamma": auto, "kimg": kimg, "chosen_by": [kid_evaluator.name], "runs": rows}
    put_files(root, {SUMMARY: readable_json(summary)})
    return rows


class KIDEvaluator:
    """KID of all classes together, equally many of each on both sides; features of the real images are computed once.

    Raises:
        UsageError: too few images on a side.
    """

    def __init__(self, data: Any, count: int) -> None:
        from visynth.metrics.bank import FeatureBank
        from visynth.metrics.extractors import extractor

        images, labels, self.classes = data.reference()
        self.count, self.bank = count, FeatureBank(extractor(), resolutions=(112,), batch=16)
        self.name = self.bank.extractor.name
        few = min(count, len(images))
        if few < FEWEST:
            raise UsageError(
                f"{few} images are too few to measure KID with, at least {FEWEST} are needed on each side: give more "
                "(--count), or more real images."
            )
        rows = self.bank.add(images)
        self.real = {name: rows[labels == k] for k, name in enumerate(self.classes)}

    def kid(self, generator: Any) -> float:
        from visynth.metrics.quality import per_class

        wanted = np.arange(self.count) % len(self.classes)
        samples = generator.sample(range(self.count), wanted.tolist())
        rows = self.bank.add([samples.crop(n).permute(1, 2, 0).numpy() for n in range(self.count)], cache=False)
        features = self.bank.get(112, "mean")
        fake = {name: features[rows[wanted == k]] for k, name in enumerate(self.classes)}
        real = {name: features[places] for name, places in self.real.items()}
        whole = per_class(real, fake, self.bank.name(112), frechet=False)[-1]
        if whole.kid is None:
            raise UsageError(
                f"{self.count} images are too few to measure KID with: give more (--count), or classes with more real "
                "images."
            )
        return whole.kid.value
