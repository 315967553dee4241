"""Audits: what whoever has a generator learns of the data behind it."""

from __future__ import annotations

import json as jsons
import sys
from pathlib import Path
from typing import Any, Literal

from visynth.commands.options import refuse
from visynth.commands.printing import printer
from visynth.core.errors import DataError, UsageError


def audit(
    generator: str,
    data: str,
    out: str,
    holdout: str | None = None,
    members: str | None = None,
    images: int | None = None,
    shadows: int = 0,
    run: str | None = None,
    invert: int = 0,
    fit: Literal["crop", "pad", "squash"] = "crop",
    gallery: bool = True,
    model: str | None = None,
    text: str | None = None,
    label: str | None = None,
    columns: list[str] | None = None,
    kinds: dict[str, str] | None = None,
    drop: list[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Attack a generator of images, of table rows or of texts, each attack beside a positive and a negative control.

    Args:
        generator: folder of a generator.
        data: what it was trained on: images as 'visynth trial' reads them, or a CSV or Parquet file; for texts also JSON Lines.
        out: folder for report.json and report.html; 'visynth gate --audit' reads it.
        holdout: the same of what it was not trained on; images that are no members serve where it is left out.
        members: file with the names of the images that were trained on, one a line, for a generator without fingerprints.
        images: synthetic images or texts to draw; of texts at most 100 by default.
        shadows: generators of the same kind to fit to held-out rows of a table, which teach what a member looks like: an even number of
            at least 4, each as long as the fit.
        run: folder of the 'visynth fit' run of a GAN, whose discriminator is attacked as well.
        invert: members, and as many controls, that a GAN is made to reconstruct.
        fit: how images became the generator's size in training: crop, pad or squash.
        gallery: show members beside their nearest synthetic images; --no-gallery for a report that is published.
        model: of a fine-tuned language model, the folder or GGUF file that was fine-tuned; the generator is what 'visynth text fit' wrote.
        text: column of the texts; rows that were learned with --task rows have none.
        label: column of their classes.
        columns: further columns that the prompt uses.
        kinds: of a table's columns, as 'visynth text fit --task rows' had them.
        drop: columns of a table that were left out there.
        device: where the generator runs.
        seed: of everything.
        json: print the findings as JSON.
        quiet: no progress.
    """
    from visynth.core.folders import claim

    claim(out, ("report.html", "report.json"))
    progress = printer(quiet)
    schema = _schema(Path(generator))
    of_images = {"--members": members, "--run": run, "--invert": invert, "--fit": fit != "crop"}
    of_texts = {
        "--model": model,
        "--text": text,
        "--label": label,
        "--columns": columns,
        "--kinds": kinds,
        "--drop": drop,
    }
    if schema.startswith("visynth.table"):
        refuse({**of_images, **of_texts, "--images": images is not None}, "a table's audit takes none of them")
        report = _table(generator, data, holdout, shadows, seed, progress)
    elif schema.startswith("visynth.generator"):
        from visynth.data.reading import read_images, tell
        from visynth.generators.base import load_generator
        from visynth.jobs.audit import audit_images, discriminator_of

        refuse({**of_texts, "--shadows": shadows}, "an audit of images takes none of them")
        own = read_images(data)
        tell(own)
        loaded = load_generator(generator, device=device)
        report = audit_images(
            loaded, own, members=_names(members), holdout=None if holdout is None else read_images(holdout), inverted=invert,
            discriminator=None if run is None else discriminator_of(run, loaded), drawn=1000 if images is None else images,
            fit=fit, seed=seed, show=gallery, progress=progress,
        )  # fmt: skip
    elif schema.startswith("visynth.text"):
        from visynth.tabular.text.audit import audit_texts, check_model
        from visynth.tabular.text.lora import load_adapter
        from visynth.tabular.text.rows import PROMPT

        refuse({**of_images, "--shadows": shadows}, "an audit of texts takes none of them")
        adapter, model = load_adapter(generator), check_model(model)
        if text is not None:
            refuse({"--kinds": kinds, "--drop": drop}, "they are for rows, which have no --text")
        elif adapter.lesson.prompt != PROMPT:
            raise UsageError("the weights learned texts, not rows: name the column of the texts (--text).")
        else:
            refuse({"--label": label, "--columns": columns}, "the weights learned rows, which are read whole")
        read = [] if holdout is None else _examples(holdout, text, label, columns, kinds, drop)
        report = audit_texts(
            adapter, model, _examples(data, text, label, columns, kinds, drop), read, label=label,
            drawn=100 if images is None else images, show=gallery, device=device, seed=seed, progress=progress,
        )  # fmt: skip
    else:
        raise UsageError(f"{generator} is a generator of schema {schema}: images, tables and texts are audited.")
    report.write(out)
    found = report.conditions["audit"]
    if json:
        print(jsons.dumps(found))
    else:
        for one in found["attacks"]:
            own_ = one["found"]
            print(f"{own_['attack']}: AUC {own_['auc']:.3f} [{own_['low']:.3f}, {own_['high']:.3f}]: {one['finding']}")
        print(report.lead)
        print(f"report: {Path(out) / 'report.html'}", file=sys.stderr)
    return 0


def _schema(folder: Path) -> str:
    file = folder / "generator.json"
    if not file.is_file():
        raise UsageError(f"{folder} is no generator: it has no generator.json.")
    return str(jsons.loads(file.read_text(encoding="utf-8")).get("schema", ""))


def _names(file: str | None) -> list[str] | None:
    if file is None:
        return None
    if not Path(file).is_file():
        raise DataError(f"there is no file {file}: it names the images that were trained on, one a line.")
    names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    return [name for name in names if name]


def _examples(
    path: str,
    text: str | None,
    label: str | None,
    columns: list[str] | None,
    kinds: dict[str, str] | None,
    drop: list[str] | None,
) -> Any:
    """Texts of a file, or its rows as they were learned."""
    from visynth.tabular.text.examples import read_examples
    from visynth.tabular.text.tuning import learnable_rows

    if text is None:
        return learnable_rows(path, kinds or {}, drop or ())[1]
    return read_examples(path, text, label, columns or ())


def _table(generator: str, data: str, holdout: str | None, shadows: int, seed: int, progress: Any) -> Any:
    from visynth.tabular.audit import audit_table
    from visynth.tabular.base import Synthesizer
    from visynth.tabular.frames import read_table

    if holdout is None:
        raise UsageError("an audit of a table needs --holdout: rows of the same table that were not fitted.")
    return audit_table(
        Synthesizer.load(generator),
        read_table(data),
        read_table(holdout),
        shadows=shadows,
        seed=seed,
        progress=progress,
    )
