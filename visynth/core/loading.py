"""Load any generator folder, of images, tables, texts or series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visynth.core import plugins
from visynth.core.artifact import load_artifact
from visynth.core.errors import IntegrityError

# By schema, the plugin group whose classes read it.
GROUPS = {
    "visynth.generator/2": "generators",
    "visynth.table/1": "synthesizers",
    "visynth.text/1": "writers",
    "visynth.series/1": "series",
}


def load_generator(path: str | Path, device: Any = "cpu") -> Any:
    """Load a generator folder, after checking that not one bit of it was changed.

    Args:
        path: a generator folder, the id of a Hugging Face hub repository that holds one, or an object store's address.
        device: where its network runs.

    Returns:
        A :class:`visynth.Generator` of images, a :class:`visynth.tabular.Synthesizer` of tables, a
        :class:`visynth.tabular.text.TextGenerator`, or a :class:`visynth.tabular.timeseries.SeriesGenerator`.

    Raises:
        IntegrityError: a file is missing, altered, or of another schema.
    """
    stored = load_artifact(path, tuple(GROUPS))
    kind = plugins.load(GROUPS[stored.identity["schema"]], stored.identity["network"])
    loaded = kind.from_artifact(stored, device)
    if loaded.digest != stored.digest:  # what was built would not be stored as what was read
        raise IntegrityError(f"{path} was altered: generator.json does not match its own digest.")
    return loaded
