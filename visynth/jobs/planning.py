"""What a test on some data could see, before anybody trains."""

from __future__ import annotations

from collections.abc import Sequence

from visynth.core.errors import UsageError, choices
from visynth.data import groups as grouping
from visynth.data.imageset import ImageSet
from visynth.verdict.planning import groups_for, smallest_effect

EFFECTS = (0.05, 0.1, 0.2)  # gains in AP that groups are counted for


def plan_lines(images: ImageSet, classes: Sequence[str], *, grouped: bool) -> list[str]:
    """A line for each class: groups at hand, smallest gain that they show, and how many more another gain needs.

    Args:
        images: the real ones.
        classes: those in question; by default all but the largest.
        grouped: whether the images' groups were given; else they are proposed as in preflight.

    Raises:
        UsageError: classes that there are not.
    """
    unknown = [name for name in classes if name not in images.classes]
    if unknown:
        raise UsageError(f"there is no class {choices(unknown)}; there are {choices(images.classes)}.")
    counts = images.counts()
    asked = list(classes) or [n for n in images.classes if n != max(counts, key=lambda name: counts[name])]
    names = [item.name for item in images.items]
    given = [item.group or item.name for item in images.items]
    source = "as given"
    if not grouped:
        proposal = grouping.propose_groups(names, grouping.find_neighbours(images))
        source = "every image by itself" if proposal is None else f"proposed by {proposal.rule}"
        given = given if proposal is None else list(proposal.groups)
    lines = [
        f"groups: {source}. Planned are 10 draws, in which every group is tested once, a one-sided 2.5 % and 80 % power, with "
        "the variances of a real set (magnetic_tile): another one has others"
    ]
    for name in asked:
        own = {g for g, item in zip(given, images.items, strict=True) if name in item.labels}
        seen = smallest_effect(len(own))
        what = "no effect can be shown" if seen > 1 else f"a test sees gains from {seen:.2f} AP on"
        needs = []
        for effect in EFFECTS:
            wanted = groups_for(effect)
            if wanted is not None:
                more = max(wanted - len(own), 0)
                needs.append(f"+{effect:g} AP needs {wanted} groups ({f'{more} more' if more else 'enough'})")
        lines.append(f"{name}: {counts[name]} images of {len(own)} groups: {what}; {', '.join(needs)}")
    return lines
