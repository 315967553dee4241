"""The main job on an embedded set: a trial on :mod:`visynth.data.demo`."""

from __future__ import annotations

from pathlib import Path

from visynth.core.files import ensure_writable
from visynth.core.folders import claim
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report
from visynth.data.demo import write_samples
from visynth.data.reading import read_images
from visynth.jobs.trial.flow import run_trial
from visynth.jobs.trial.options import TrialOptions

# Spots may sit anywhere, so pasting them onto other parts teaches something; stains are soft and wide, and pasted ones
# mislead. Many parts carry a spot, so that the test can see a gain.
COUNTS = {"good": 200, "spot": 72, "stain": 30}
RARE = ("spot", "stain")
TRIAL = "trial"  # folder of the results
RARE_GROUPS = 3  # a scarcity that can be measured: the other regions with spots serve the oracle and the test


def quickstart(out: str | Path = "quickstart", *, minutes: float = 4.0, progress: Progress = no_progress) -> Report:
    """Write the samples to ``out/data`` and run a trial on them into ``out/trial``.

    Args:
        out: folder for data and results.
        minutes: budget of the trial.
        progress: receives progress lines.
    """
    out = ensure_writable(out)
    claim(out / TRIAL)
    data = write_samples(out / "data", per_class=COUNTS)
    progress(f"samples written to {data} (semi-synthetic: real textures, simulated defects)")
    images = read_images(data / "images", masks=data / "masks", groups=data / "groups.csv")
    options = TrialOptions(
        rare_groups=RARE_GROUPS,
        draws=6,
        folds=2,
        synthetic=48,
        minutes=minutes,
        others=False,
        dense=False,
        learned="none",
    )
    return run_trial(
        images,
        RARE,
        out / TRIAL,
        options=options,
        grouped=True,
        subject="the built-in texture samples (semi-synthetic)",
        progress=progress,
    )
