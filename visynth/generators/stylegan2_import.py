"""``visynth import-stylegan2``: a public StyleGAN2 checkpoint as a generator folder, to sample from or to fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visynth.core.errors import DataError, UsageError
from visynth.core.files import hash_file
from visynth.core.folders import claim


def import_stylegan2(
    path: str | Path, out: str | Path, classes: Sequence[str] | None = None, which: str = "G_ema"
) -> Path:
    """Write a generator folder, and the discriminator in it, from a ``network-snapshot-*.pkl``.

    Args:
        path: the pickle, of stylegan2-ada-pytorch or of stylegan3's repository with its StyleGAN2 configuration;
            nothing in it is executed.
        out: the generator folder.
        classes: names in label order; by default class0, class1, ...; an unconditional network has one.
        which: "G_ema", the averaged generator, or "G".

    Raises:
        DataError: a file that cannot be read safely, or another kind of network.
        UsageError: other than one name a class.
    """
    from visynth.generators.base import Spec
    from visynth.generators.gan import StyleGAN2
    from visynth.generators.stylegan2_pickle import read_stylegan2
    from visynth.networks.discriminator import stored

    claim(out)
    pickled = read_stylegan2(path, which)
    arguments = dict(pickled.arguments)
    size, channels = arguments.pop("size"), arguments.pop("channels")
    count = max(arguments["classes"], 1)
    names = tuple(classes) if classes else tuple(f"class{n}" for n in range(count)) if count > 1 else ("image",)
    if len(names) != count:
        raise UsageError(f"{path} knows {count} classes, but {len(names)} names were given: {', '.join(names)}.")
    together = max(1, min(16, 16 * 256**2 // size**2))  # images of 1024 pixels one by one
    spec = Spec("stylegan2", arguments, names, channels, (size, size), sampler={"noise": "const"}, micro_batch=together)
    try:
        imported = StyleGAN2.build(spec, pickled.generator, "cpu")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    imported.card = {
        "task": "StyleGAN2, imported",
        "source": Path(path).name,
        "source sha256": hash_file(Path(path)),
        "licence": "as its source says; it is not known to visynth",
        "made by": "visynth import-stylegan2",
    }
    return imported.save(out, stored(pickled.discriminator) if pickled.discriminator else None)
