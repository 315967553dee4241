"""Print progress on stderr, verdicts on stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from json import dumps
from typing import Any

from visynth.core.progress import Progress, no_progress


def printer(quiet: bool) -> Progress:
    """Prints lines of progress on stderr, or does not."""
    return no_progress if quiet else _print_line


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def render_progress(state: Mapping[str, Any]) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in state["counts"].items() if count)
    end = "\n" if state["done"] == state["total"] else "\r" if sys.stderr.isatty() else "\n"
    print(
        f"{state['done']}/{state['total']} {state['what']}, {state['rate']:.0f} {state['what']}/s, {state['seconds left']:.0f} s "
        f"left ({counts})",
        end=end,
        file=sys.stderr,
        flush=True,
    )


def verdicts(report: Any, as_json: bool) -> None:
    if as_json:
        print(
            dumps(
                [{"class": v.label, "answer": v.answer, "reason": v.reason, "next": v.next} for v in report.verdicts],
                indent=2,
            )
        )
        return
    for verdict in report.verdicts:
        print(f"{verdict.headline}. {verdict.reason}." + (f"\n    next: {verdict.next}." if verdict.next else ""))
