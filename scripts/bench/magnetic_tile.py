"""What composition did on magnetic_tile at 3 training groups of each rare class: one trial, a JSON line for each class.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/magnetic_tile.py --data ../shared/data/magnetic_tile

The table in scripts/bench/README.md is printed from them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from visynth.data.reading import read_images
from visynth.jobs.trial.flow import run_trial
from visynth.jobs.trial.options import TrialOptions

CLASSES = ("blowhole", "crack", "break")
SHOWN = (
    "real",
    "duplicate",
    "balanced",
    "logit adjusted",
    "smote",
    "augment",
    "dense",
    "synthetic",
    "no control",
    "oracle",
)


def run(data: Path, out: Path, options: TrialOptions) -> list[dict]:
    images = read_images(data / "images", masks=data / "masks", groups=data / "groups.csv")
    started = time.monotonic()
    report = run_trial(images, CLASSES, out, options=options, grouped=True, subject="magnetic_tile", progress=print)
    seconds = round(time.monotonic() - started)
    return [
        {
            "class": verdict.label,
            "answer": verdict.answer,
            "reason": verdict.reason,
            "seconds": seconds,
            "rare_groups": options.rare_groups,
            "draws": options.draws,
            "seed": options.seed,
            "learner": options.learner,
            **verdict.numbers,
        }
        for verdict in report.verdicts
        if verdict.label in CLASSES
    ]


def table(lines: list[dict]) -> str:
    head = (
        "| arm | "
        + " | ".join(f"{line['class']} ({line['learner']})" for line in lines)
        + " |\n|---|"
        + "---|" * len(lines)
        + "\n"
    )
    rows = ""
    for arm in SHOWN:
        cells = []
        for line in lines:
            row = line["arms"].get(arm)
            cells.append("-" if row is None else f"{row['mean']:.3f} [{row['low']:.2f}, {row['high']:.2f}]")
        rows += f"| {arm} | " + " | ".join(cells) + " |\n"
    rows += "| **verdict** | " + " | ".join(f"**{line['answer']}**: {line['reason']}" for line in lines) + " |\n"
    rows += (
        "| recall at 5 % FPR, synthetic minus baseline | "
        + " | ".join(
            f"{line['recall_difference']['mean']:+.3f} [{line['recall_difference']['low']:+.2f}, "
            f"{line['recall_difference']['high']:+.2f}]"
            for line in lines
        )
        + " |\n"
    )
    return head + rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/magnetic_tile"))
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--learner", default="frozen")
    parser.add_argument("--draws", type=int, default=5)
    given = parser.parse_args()
    options = TrialOptions(
        rare_groups=3, draws=given.draws, minutes=600, others=False, learner=given.learner, learned="none"
    )
    lines = run(given.data, given.out / given.learner, options)
    file = given.out / "magnetic_tile.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
