"""A rendered set beside the real images that it is measured on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def made(medium, tmp_path_factory):
    """A generator of half of the medium set's groups, its images, and the set."""
    from visynth.data.reading import read_images
    from visynth.generators.base import load_generator
    from visynth.jobs.make import fit_compose
    from visynth.render.run import make_plan, render_set

    root = tmp_path_factory.mktemp("half")
    images = read_images(medium / "images", masks=medium / "masks", groups=medium / "groups.csv")
    groups = sorted({item.group for item in images.items})
    train = images.select(lambda item: item.group in groups[::2])
    fit_compose(train, root / "generator", classes=["spot"])
    generator = load_generator(root / "generator")
    return images, render_set(generator, make_plan(generator, per_class=24), root / "renders")
