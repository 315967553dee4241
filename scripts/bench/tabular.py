"""Tables: fidelity on the census at equal time, the rare class on two sets, and size.

    python scripts/bench/tabular.py adult --out adult.json
    python scripts/bench/tabular.py rare --out rare.json
    python scripts/bench/tabular.py scale --out scale.json

Needs the sets of VISYNTH_DATA (default ../shared/data). Run it on an idle machine: times are wall times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from visynth.core import plugins
from visynth.tabular import infer, read_table
from visynth.tabular.attacks import attack
from visynth.tabular.fidelity import fidelity, summary
from visynth.tabular.schema import taken
from visynth.tabular.utility import rare_class, train_on_synthetic
from visynth.verdict.summary import arms_block, summarise

DATA = Path(os.environ.get("VISYNTH_DATA", "../shared/data")) / "tabular"
SECONDS = 110.0  # of training, for each generator
PILOT = 60
BASELINES = ("marginals", "copula")
TRAINED = ("masked", "diffusion", "tvae", "ctgan")


def halves(frame: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two halves of a table."""
    order = np.random.default_rng(seed).permutation(len(frame))
    middle = len(frame) // 2
    return frame.iloc[order[:middle]].reset_index(drop=True), frame.iloc[order[middle:]].reset_index(drop=True)


def steps_for(name: str, train: pd.DataFrame, schema: Any, target: str) -> int:
    """Optimiser steps that take ``SECONDS`` here."""
    times = []
    for steps in (2, 2, PILOT):  # the first one warms up
        begun = time.monotonic()
        plugins.load("synthesizers", name)(steps=steps).fit(train, schema=schema, target=target, members="none")
        times.append(time.monotonic() - begun)
    return int(SECONDS / ((times[2] - times[1]) / (PILOT - 2)))


def adult(seeds: Sequence[int]) -> dict[str, Any]:
    """Every generator on half of the census, judged on the other half, and on the half that it was fitted to."""
    frame = read_table(DATA / "adult_census.parquet").drop(columns="split")
    rows: dict[str, list[dict[str, Any]]] = {}
    steps: dict[str, int] = {}
    for seed in seeds:
        train, held = halves(frame, seed)
        schema = infer(frame, target="income")
        steps = steps or {name: steps_for(name, train, schema, "income") for name in TRAINED}
        print(steps, flush=True)
        real, test = schema.table(train), schema.table(held)
        floor = {"seed": seed, **summary(fidelity(test, real, schema, seed))}
        floor["TSTR AUC"] = train_on_synthetic({"real": real}, test, schema, "income")["real"][0]
        rows.setdefault("real rows (noise floor)", []).append(floor)
        for name in (*BASELINES, *TRAINED):
            options = {"seed": seed, **({"steps": steps[name]} if name in TRAINED else {})}
            begun = time.monotonic()
            model = plugins.load("synthesizers", name)(**options).fit(
                train, schema=schema, target="income", members="none"
            )
            fitted = time.monotonic() - begun
            begun = time.monotonic()
            fake, _ = model.rows(np.arange(len(train)), seed)
            drawn = len(train) / (time.monotonic() - begun)
            own = {"seed": seed, **summary(fidelity(test, fake, schema, seed))}
            own |= {f"{n}, to fitted rows": v for n, v in summary(fidelity(real, fake, schema, seed)).items()}
            own["TSTR AUC"] = train_on_synthetic({"fake": fake}, test, schema, "income")["fake"][0]
            few = np.arange(len(train))
            losses = (model.losses(train, seed=seed), model.losses(held, seed=seed))
            white = None if losses[0] is None or losses[1] is None else (losses[0], losses[1])
            found = attack(taken(real, few), taken(test, few), fake, schema, seed=seed, losses=white)
            own |= {
                "closer to fitted": found.closer[0],
                **{m.attack: m.auc for m in found.memberships},
                "leaks": found.leaks,
            }
            own |= {"fit seconds": fitted, "steps": steps.get(name, 0), "rows/s": drawn}
            rows.setdefault(name, []).append(own)
            print(name, json.dumps(own), flush=True)
    return {"rows": rows, "means": {name: _means(own) for name, own in rows.items()}}


def _means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    return {
        n: [round(statistics.fmean(r[n] for r in runs), 4), round(statistics.pstdev(r[n] for r in runs), 4)]
        for n in names
    }


def rare(seeds: Sequence[int], draws: int = 5, folds: int = 3) -> dict[str, Any]:
    """Real and synthetic rows of the rare class against weights, over-sampling and SMOTE."""
    sets = {
        "mammography": ("mammography.csv", "target", "1", []),
        "ai4i2020": (
            "ai4i2020.csv",
            "Machine failure",
            "1",
            ["TWF", "HDF", "PWF", "OSF", "RNF"],
        ),  # they are the label's parts
    }
    outcome = {}
    for name, (file, target, label, drop) in sets.items():
        frame = read_table(DATA / file).drop(columns=drop)
        schema = infer(frame, target=target)

        def make(seed: int) -> Any:
            return plugins.load("synthesizers", "masked")(steps=600, seed=seed)

        begun = time.monotonic()
        results = rare_class(frame, schema, target, label, make, draws=draws, folds=folds, progress=print)
        found = summarise({results.label: results})[results.label]
        block = arms_block(results, found, "boosted trees")
        outcome[name] = {"verdict": found.verdict.to_json(), "blocks": block, "seconds": time.monotonic() - begun}
        print(name, json.dumps(outcome[name]["verdict"]), flush=True)
        for row in block[0]["rows"]:
            print("  ", json.dumps(row), flush=True)
    return outcome


def scale(seeds: Sequence[int]) -> dict[str, Any]:
    """200,000 rows by 24 columns with one of 20,000 categories; then a million rows sampled."""
    from visynth.tabular import Masked

    g = np.random.default_rng(0)
    n = 200_000
    frame = pd.DataFrame({f"n{k}": g.gamma(2, 10 + k, n).round(2) for k in range(12)})
    frame = frame.assign(**{f"c{k}": g.choice([f"v{j}" for j in range(10 + 5 * k)], n) for k in range(11)})
    frame["shop"] = [f"shop {k}" for k in np.minimum(g.zipf(1.3, n) % 20_000, 19_999)]
    frame["shop"] = np.where(g.random(n) < 0.9, [f"shop {k}" for k in g.integers(0, 20_000, n)], frame["shop"])
    first: list[float] = []
    begun = time.monotonic()

    def mark(line: str) -> None:
        first.append(time.monotonic() - begun)

    model = Masked(steps=200).fit(frame, progress=mark, kinds={"shop": "categorical"})
    fitted, peak = time.monotonic() - begun, _peak()
    sizes, begun = [], time.monotonic()
    for chunk in model.stream(1_000_000, seed=1):
        sizes.append(_now())
        del chunk
    seconds = time.monotonic() - begun
    return {
        "categories": int(frame["shop"].nunique()), "seconds to the first step told": round(first[0], 1),
        "200 steps, seconds": round(fitted, 1), "peak GB of the fit": round(peak, 2),
        "rows/s": round(1_000_000 / seconds), "GB at the first and the last chunk": [round(sizes[0], 2), round(sizes[-1], 2)],
        "peak GB": round(_peak(), 2),
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _now() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def main() -> None:
    jobs: dict[str, Callable[[Sequence[int]], dict[str, Any]]] = {"adult": adult, "rare": rare, "scale": scale}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=jobs)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the halves, for adult")
    args = parser.parse_args()
    found = jobs[args.job](args.seeds)
    args.out.write_text(json.dumps(found, indent=1, default=str))
    print(json.dumps(found.get("means", found), indent=1, default=str))


if __name__ == "__main__":
    main()
