"""Series: three models beside two that learn nothing, each trained for the same wall time, on real sets.

    python scripts/bench/series.py motions --seconds 240 --out /tmp/series-motions
    python scripts/bench/series.py machines --seconds 240 --out /tmp/series-machines

``motions``: the 40 + 40 series of basic_motions.npz, fitted to the training half of the archive, judged on its test half.
``machines``: the sensor columns of ai4i2020.csv, one series a tool (from one change of the tool to the next), class: whether
the machine failed in it; tools alternate between fitting and judging.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from visynth.core.report import Report, environment
from visynth.tabular.timeseries import SeriesAR, SeriesDiffusion, TimeVAE, from_arrays, read_series
from visynth.tabular.timeseries.evaluate import HELD_OUT, measure_series
from visynth.tabular.timeseries.report import LEAD, figure, series_sections
from visynth.tabular.timeseries.series import Series

DATA = Path(os.environ.get("VISYNTH_DATA", "../shared/data")) / "tabular"
SENSORS = {
    "Air temperature [K]": "air", "Process temperature [K]": "process", "Rotational speed [rpm]": "speed",
    "Torque [Nm]": "torque", "Tool wear [min]": "wear",
}  # fmt: skip
TIMED = 30
LONGEST = 60  # rows of a tool that are taken


def motions() -> tuple[Series, Series]:
    with np.load(DATA / "basic_motions.npz", allow_pickle=False) as stored:
        sides = [from_arrays(stored[f"X_{s}"], stored[f"y_{s}"].tolist()) for s in ("train", "test")]
    return sides[0], sides[1]


def machines() -> tuple[Series, Series]:
    rows = pd.read_csv(DATA / "ai4i2020.csv").rename(columns=SENSORS)
    tool = (rows["wear"].diff() < 0).cumsum()
    rows["tool"] = tool.map("tool {:03d}".format)
    rows = rows[rows.groupby("tool").cumcount() < LONGEST].copy()
    failed = rows.groupby("tool")["Machine failure"].transform("max")
    rows["failed"] = np.where(failed > 0, "yes", "no")
    own = rows[["tool", "failed", *SENSORS.values()]]
    series = read_series(own, entity="tool", target="failed", step=1)
    odd = np.arange(len(series)) % 2
    return series.take(odd == 0), series.take(odd == 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("motions", "machines"))
    parser.add_argument("--seconds", type=float, default=240.0, help="of each training")
    parser.add_argument("--models", nargs="+", default=["vae", "diffusion", "ar"])
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, held = {"motions": motions, "machines": machines}[args.data]()
    print(
        f"{args.data}: {len(train)} series to fit, {len(held)} to judge, rows {train.lengths.min()} to {train.lengths.max()}"
    )
    kinds: dict[str, Any] = {"vae": TimeVAE, "diffusion": SeriesDiffusion, "ar": SeriesAR}
    fitted, times = {}, {}
    for name in args.models:
        begun = time.perf_counter()
        kinds[name](steps=TIMED).fit(train, members="none")
        steps = max(int(args.seconds / (time.perf_counter() - begun) * TIMED), TIMED)
        begun = time.perf_counter()
        fitted[name] = kinds[name](steps=steps, seed=args.seed).fit(train)
        times[name] = (steps, time.perf_counter() - begun)
        print(f"{name}: {steps} steps, {times[name][1]:.0f} s", flush=True)
    first, *rest = args.models
    figures = measure_series(
        fitted[first], train, held, seed=args.seed, others={n: fitted[n] for n in rest}, progress=print
    )
    columns = ["series", "steps, seconds", "discriminative", "predictive", "context FD", "ACF", "spectrum dB", "cross"]
    columns += ["values", "recall", "nearer", "copies"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for name, own in figures.items():
        spent = "{}, {:.0f}".format(*times[name]) if name in times else ""
        recall = f"{np.mean(list(own.accuracy.values())):.3f}" if own.accuracy else ""
        near = "" if own.closer is None else "{:.2f} [{:.2f}, {:.2f}]".format(*own.closer)
        rest_of = [own.context_fd, own.autocorrelation, own.spectrum, own.cross_correlation, own.values]
        print(
            f"| {name} | {spent} | {figure(own.discriminative)} | {figure(own.predictive)} | "
            f"{' | '.join(f'{value:.3f}' for value in rest_of)} | {recall} | {near} | {'' if own.copies is None else f'{own.copies:.0%}'} |"
        )
    for name, one in fitted.items():
        report = Report("series bench", f"{args.data}, {name}", lead=LEAD)
        series_sections(report, figures, one, train, held, args.seed)
        report.conditions |= {"figures": {n: own.to_json() for n, own in figures.items()}, **environment()}
        report.write(Path(args.out) / name)
    Path(args.out, "figures.json").write_text(
        json.dumps({n: own.to_json() for n, own in figures.items() if n != HELD_OUT})
    )


if __name__ == "__main__":
    main()
