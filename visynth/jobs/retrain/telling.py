"""How a run's outcome reaches people and machines: a metrics file for Prometheus, and an address that is called."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from visynth.core.errors import UsageError
from visynth.core.files import write_text
from visynth.jobs.retrain.flow import STATE, Outcome

OUTCOMES = ("skipped", "promoted", "rejected", "insufficient evidence", "awaiting approval", "rolled back", "failed")


def write_metrics(path: str | Path, outcome: Outcome, job: str) -> None:
    """A file for the node exporter's textfile collector, written whole.

    Args:
        path: ending with ``.prom``.
        outcome: of the run.
        job: name of the job, a label of every metric.
    """
    label = json.dumps(job)
    lines = [
        "# HELP visynth_retrain_last_success_seconds When a run last ended without an error, in seconds since 1970.",
        "# TYPE visynth_retrain_last_success_seconds gauge",
        f"visynth_retrain_last_success_seconds{{job={label}}} {time.time():.0f}",
        "# HELP visynth_retrain_seconds How long the last run took.",
        "# TYPE visynth_retrain_seconds gauge",
        f"visynth_retrain_seconds{{job={label}}} {outcome.seconds:.1f}",
        "# HELP visynth_retrain_outcome 1 for what the last run came to.",
        "# TYPE visynth_retrain_outcome gauge",
    ]
    lines += [
        f'visynth_retrain_outcome{{job={label},outcome="{word}"}} {int(word == outcome.outcome)}' for word in OUTCOMES
    ]
    write_text(path, "\n".join(lines) + "\n")


def check_heartbeat(url: str) -> None:
    """Refuse an address that cannot be called, before long work starts.

    Raises:
        UsageError: it is neither http nor https.
    """
    if url and urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"heartbeat must be an http or https address, but got {url!r}.")


def call_heartbeat(url: str, outcome: Outcome, seconds: float = 10.0) -> str:
    """Tell an address that a run ended well, with its outcome as JSON; a monitor that hears nothing alarms.

    Returns:
        What went wrong, or nothing: a monitor that cannot be reached is no reason for a run to fail.
    """
    body = json.dumps({"outcome": outcome.outcome, "run": outcome.run, "champion": outcome.champion}).encode()
    request = Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
    try:
        with urlopen(request, timeout=seconds):
            return ""
    except (URLError, OSError, ValueError) as error:
        return f"the heartbeat address could not be reached: {error}"


def last_success(out: str | Path) -> tuple[float, dict[str, Any]]:
    """Seconds since a job last ended without an error, and its state; infinite where it never did, below 0 where a clock was
    wrong."""
    try:
        state = dict(json.loads((Path(out) / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return math.inf, {}
    return time.time() - float(state.get("last success", 0.0)), state
