"""The scheduled job that keeps a generator fresh."""

from __future__ import annotations

import sys
from json import dumps
from typing import Any, Literal

from visynth.commands.options import DataOptions
from visynth.commands.printing import printer
from visynth.core.errors import UsageError

EXIT_CODES = {"rejected": 20, "insufficient evidence": 21}


def retrain(
    data: DataOptions,
    classes: list[str],
    generator: dict[str, Any],
    registry: str,
    out: str,
    target: str | None = None,
    kinds: dict[str, str] | None = None,
    new_images: int = 20,
    drift: float = 0.05,
    max_age: str = "30d",
    count: int = 60,
    seeds: int = 5,
    canary: int = 16,
    require: Literal["helps", "no harm"] = "helps",
    require_approval: bool = False,
    downstream: dict[str, Any] | None = None,
    fail_on_reject: bool = False,
    metrics: str | None = None,
    heartbeat: str = "",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Retrain a generator if there is a reason, judge it against the champion, promote it or not. Safe to run by any
    scheduler: one run at a time, the same data are not judged twice, a run that was stopped goes on.

    Args:
        data: images as for 'visynth trial', or a CSV or Parquet file with --target.
        classes: in question: the rare ones.
        generator: '{compose: {...}}', '{config: file.yaml, set: {trainer.max_steps: 20000}}', or of tables '{synthesizer:
            masked, arguments: {...}}'.
        registry: with the champion: its folder, or mlflow+https://host:5000/NAME.
        out: folder of the runs and the state; one for each generator that is kept fresh.
        target: the class column; then data are a table.
        kinds: of columns where the data mislead.
        new_images: retrain from so many new images or rows of a class; 0: never for that.
        drift: retrain when features or class counts moved; how often at most where nothing did. 0: never.
        max_age: retrain when the champion is older, like 30d; '' never.
        count: synthetic images of each class that are judged.
        seeds: paired repetitions.
        canary: images or rows of each class that are rendered to look at.
        require: helps (a shown benefit over the best baseline) or 'no harm'.
        require_approval: stop before the promotion and say how a person promotes.
        downstream: a training of your own that is run with the new images and without, and promoted or kept with the generator:
            '{config: training.yaml, metric: val_f1}', a LightningCLI file and what its test step logs; more in
            visynth.jobs.retrain.downstream.Downstream.
        fail_on_reject: exit with 20 when the challenger is rejected, with 21 on insufficient evidence.
        metrics: file for Prometheus' textfile collector (.prom).
        heartbeat: http address that is told of every run that ends without an error.
        json: print the outcome as JSON.
        quiet: no progress.
    """
    from visynth.core import plugins
    from visynth.jobs.retrain.downstream import downstream_of
    from visynth.jobs.retrain.flow import retrain as run
    from visynth.jobs.retrain.options import Job, Policy, Triggers
    from visynth.jobs.retrain.telling import call_heartbeat, check_heartbeat, write_metrics

    check_heartbeat(heartbeat)
    if metrics is not None and not metrics.endswith(".prom"):
        raise UsageError(f"metrics must end with .prom, as Prometheus' collector wants it, but got {metrics!r}.")
    triggers = Triggers(new_images, drift, max_age)
    policy, module = Policy(require, require_approval), None if downstream is None else downstream_of(downstream)
    job = Job(generator, tuple(classes), count, seeds, canary, policy, module)
    progress = printer(quiet)
    if target is None:
        subject: Any = plugins.load("subjects", "images")(data.read(), job, progress)
    else:
        from visynth.tabular.frames import read_table

        subject = plugins.load("subjects", "tables")(read_table(data.data), target, job, kinds, progress)
    outcome = run(subject, job, out, registry, triggers=triggers, progress=progress)
    if metrics is not None:
        write_metrics(metrics, outcome, out)
    if heartbeat and (wrong := call_heartbeat(heartbeat, outcome)):
        print(wrong, file=sys.stderr)
    print(
        dumps(outcome.to_json())
        if json
        else "\n  ".join([f"{outcome.outcome}: champion {outcome.champion[:12] or 'none'}", *outcome.reasons])
    )
    return EXIT_CODES.get(outcome.outcome, 0) if fail_on_reject else 0
