"""Select rendered images by reviewers' decisions and by scores, both files beside the manifest. Training,
measuring and exporting ask here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from visynth.core.errors import UsageError
from visynth.core.manifest import REVIEW, SCORES, Record, Renders, read_reviews, read_scores


def selected(renders: Renders, keep: Mapping[str, Any] | None = None) -> Renders:
    """The set with the images that count alone, see :func:`kept`; how many are left out is the difference in
    ``records``."""
    return replace(renders, records=tuple(kept(renders, keep or {})))


def kept(renders: Renders, keep: Mapping[str, Any]) -> list[Record]:
    """Records that pass the filters.

    Args:
        renders: a rendered set.
        keep: ``review``: "not rejected" (the default), "accepted" or "any"; ``agreement``: least probability of the own
            class that a classifier of real images gave; ``near_duplicates``: False to leave out those that lie too close to a
            training image.

    Raises:
        UsageError: scores or decisions are asked for that do not exist; nothing is left.
    """
    decisions = read_reviews(renders.folder)
    review = keep.get("review", "not rejected")
    if review == "accepted" and not decisions:
        raise UsageError(
            f"keep asks for accepted images, but {renders.folder / REVIEW} has no decisions. Write them there, one "
            "line an image: "
            '{"file_name": ..., "decision": "accept"}.'
        )
    records = [r for r in renders.records if _reviewed(decisions.get(r.file_name), review)]
    least, allowed = keep.get("agreement"), keep.get("near_duplicates", True)
    if least is not None or not allowed:
        scores = read_scores(renders.folder)
        without = [r.file_name for r in records if r.file_name not in scores]
        if without:
            raise UsageError(
                f"keep filters by scores, but {len(without)} images of {renders.folder} have none in {SCORES} (for "
                "instance "
                f"{without[0]}). Make them with 'visynth renders score'."
            )
        if least is not None:
            records = [r for r in records if float(scores[r.file_name]["agreement"]) >= least]
        if not allowed:
            records = [r for r in records if not scores[r.file_name]["copy"]]
    if not records:
        raise UsageError(
            f"keep leaves none of the {len(renders.records)} images of {renders.folder}: loosen it, or render others."
        )
    return records


def _reviewed(decision: str | None, review: str) -> bool:
    if review == "any":
        return True
    return decision == "accept" if review == "accepted" else decision != "reject"
