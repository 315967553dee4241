"""What the learned generators do: a list of cells that each append one JSON line and are skipped when it is there.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/diffusion.py --data ../shared/data [--cells NAME ...]

Cells (minutes on two cores): ``digits`` (4), ``neu_det`` (12), ``callbacks`` (6), ``magnetic_tile`` (75), ``neu_det_5`` and ``neu_det_20`` (15 each).
Sheets of samples go to the output folder: look at them. The tables in scripts/bench/README.md are printed from the lines.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visynth.data.reading import read_images
from visynth.report import Report, environment
from visynth.trial import run_trial
from visynth.trial_cells import TrialOptions

RARE_TILES = ["blowhole", "crack", "break"]


def trial_numbers(report: Report, names: list[str]) -> dict[str, Any]:
    return {
        v.label: {"answer": v.answer, "reason": v.reason, **dict(v.numbers)} for v in report.verdicts if v.label in names
    }


def magnetic_tile(data: Path, out: Path) -> dict[str, Any]:
    """Inpainting, composition and classic augmentation on identical draws, 3 tile groups of each rare class."""
    root = data / "magnetic_tile"
    images = read_images(root / "images", masks=root / "masks", groups=root / "groups.csv")
    options = TrialOptions(
        rare_groups=3, draws=5, folds=2, synthetic=60, minutes=75, others=False, dense=False, learned="inpaint"
    )
    report = run_trial(images, RARE_TILES, out / "magnetic_tile", options=options, grouped=True, say=print)
    return {"classes": trial_numbers(report, RARE_TILES), "conditions": report.conditions}


CELLS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "magnetic_tile": magnetic_tile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VISYNTH_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    given = parser.parse_args()
    file = given.out / "diffusion.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {line["cell"] for line in lines}
    for name in given.cells:
        if name in done:
            continue
        started = time.monotonic()
        found = CELLS[name](given.data, given.out)
        line = {"cell": name, "seconds": round(time.monotonic() - started), **found, **environment()}
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
