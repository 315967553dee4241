"""Options that several commands share, said once. Their flags stand flat beside the command's own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visynth.core.errors import UsageError

if TYPE_CHECKING:
    from visynth.data.imageset import ImageSet


@dataclass(frozen=True)
class DataOptions:
    """The real images and how to read them.

    Args:
        data: class folders (with train/, val/, test/ above them if held out), a .csv or .jsonl list, or a COCO .json.
        masks: folder of masks that mirrors the images' layout.
        mask_suffix: what mask files have after their images' names, where it is not _mask, _label, _gt or _seg.
        groups: CSV with columns file,group; images of one group (part, scene, patient) stay together.
        group_pattern: regular expression on image names whose first group is the group.
        max_bad_fraction: share of unusable files up to which they are left out.
    """

    data: str
    masks: str | None = None
    mask_suffix: str | None = None
    groups: str | None = None
    group_pattern: str | None = None
    max_bad_fraction: float = 0.05

    def read(self) -> ImageSet:
        """As :func:`visynth.read_images`; notes and unusable files are printed on stderr."""
        from visynth.data.reading import read_images, tell

        images = read_images(
            self.data,
            masks=self.masks,
            mask_suffix=self.mask_suffix,
            groups=self.groups,
            group_pattern=self.group_pattern,
            max_bad_fraction=self.max_bad_fraction,
        )
        tell(images)
        return images

    def grouped(self, images: ImageSet) -> bool:
        """Whether the user said which images belong together."""
        return bool(self.groups or self.group_pattern) or any(item.group for item in images.items)

    @property
    def title(self) -> str:
        """Name of the set in reports: its folder, with the one above where that says more."""
        path = Path(self.data).resolve()
        return f"{path.parent.name}/{path.name}" if path.name in ("images", "train") else path.name


@dataclass(frozen=True)
class BackendOptions:
    """Who writes the texts.

    Args:
        backend: openai (any server of that protocol), local (a model's folder or GGUF file) or template (no model).
        model: name that the server knows it by, or path of the local model.
        base_url: of the server.
        sentences: text file of the template backend, one sentence a line, e.g. The {product} is {sentiment}.
        temperature: 0 takes the most likely token.
        top_p: share of the probability that is drawn from.
        max_tokens: of a reply; a server that knows it by another name: --extra '{max_tokens: null, max_completion_tokens: 512}'.
        structured: how a schema is sent to a server.
        key_env: environment variable with the server's key.
        at_once: requests under way at a time.
        per_minute: most requests a minute.
        timeout: seconds for a reply.
        retries: further tries after errors of the server.
        price_in: of a million prompt tokens.
        price_out: of a million reply tokens.
        most_cost: the run stops, with what it has kept, before it costs more.
        extra: further fields of a request's body, e.g. '{top_k: 40}'.
        device: where a local model runs.
        batch: requests that a local model computes together.
        constrain: whether a local model's replies can only be what the schema allows.
        adapter: folder that 'visynth text fit' wrote for the local model.
    """

    backend: Literal["openai", "local", "template"]
    model: str | None = None
    base_url: str | None = None
    sentences: str | None = None
    temperature: float = 0.9
    top_p: float = 0.95
    max_tokens: int = 512
    structured: Literal["json_schema", "json_object", "none"] = "none"
    key_env: str = "OPENAI_API_KEY"
    at_once: int = 8
    per_minute: float | None = None
    timeout: float = 120.0
    retries: int = 5
    price_in: float = 0.0
    price_out: float = 0.0
    most_cost: float | None = None
    extra: dict[str, Any] | None = None
    device: str = "cpu"
    batch: int = 16
    constrain: bool = True
    adapter: str | None = None

    def check(self) -> None:
        """Refuse a backend without what it needs, before anything is read.

        Raises:
            UsageError: it is not given.
        """

        needs = {"openai": ("base_url", "model"), "local": ("model",), "template": ("sentences",)}[self.backend]
        lost = [f"--{name.replace('_', '-')}" for name in needs if not getattr(self, name)]
        if lost:
            raise UsageError(f"--backend {self.backend} needs {' and '.join(lost)}.")
        if self.adapter and self.backend != "local":
            raise UsageError(f"--adapter is for --backend local, but the backend is {self.backend}.")

    def lesson(self) -> Any:
        """How the adapter's texts were asked for while it learned them; None without an adapter."""
        if self.adapter is None:
            return None
        from visynth.tabular.text.lora import load_adapter

        return load_adapter(self.adapter).lesson

    def make(self) -> Any:
        """The backend; a local model is read."""
        from visynth.tabular.text import Decoding, OpenAICompatible, Template, TransformersLocal

        decoding = Decoding(self.temperature, self.top_p, self.max_tokens)
        if self.backend == "template":
            return Template(_lines(self.sentences or ""))
        if self.backend == "local":
            return TransformersLocal(
                self.model or "", decoding, device=self.device, batch=self.batch, constrain=self.constrain,
                adapter=self.adapter,
            )  # fmt: skip
        return OpenAICompatible(
            self.base_url or "", self.model or "", decoding, structured=self.structured, key_env=self.key_env,
            at_once=self.at_once, per_minute=self.per_minute, timeout=self.timeout, retries=self.retries,
            price_in=self.price_in, price_out=self.price_out, most_cost=self.most_cost, extra=self.extra,
        )  # fmt: skip


@dataclass(frozen=True)
class JobOptions:
    """Where texts go, and how often they are tried.

    Args:
        out: folder for texts.jsonl, the report, the generator, what is missing, and the job's own files.
        attempts: at a text, the first and those with the error told.
        rounds: in which texts that could not be had are written anew.
        seed: of everything.
        json: print the summary as JSON.
        quiet: no progress.
    """

    out: str = "texts"
    attempts: int = 3
    rounds: int = 3
    seed: int = 0
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class RepeatOptions:
    """When a text says again what another one says.

    Args:
        minhash: least similarity of runs of characters; 0 does not ask.
        cosine: least cosine of embeddings, by default 0.8, or 0.9 of a model of sentence-transformers; 0 does not ask.
        embedder: a local model's folder or GGUF file for the embeddings, e.g. of sentence-transformers; by default weights of
            words and runs of characters.
    """

    minhash: float = 0.7
    cosine: float | None = None
    embedder: str | None = None

    def rule(self) -> Any:
        """The rule of the options.

        Raises:
            UsageError: values that cannot be.
        """
        from visynth.tabular.text.duplicates import Deduplication

        if self.embedder and self.cosine is None and not (Path(self.embedder) / "1_Pooling").is_dir():
            raise UsageError(
                "say from which --cosine on two texts are the same to this --embedder: models that were not made for embeddings "
                "have high ones for unlike texts, too."
            )
        if self.embedder and self.cosine == 0:
            raise UsageError("--embedder does nothing with --cosine 0.")
        cosine = (0.9 if self.embedder else 0.8) if self.cosine is None else self.cosine
        return Deduplication(minhash=self.minhash or None, cosine=cosine or None)

    def make(self) -> Any:
        """The embedder, or None for the built-in one; a model is read."""
        from visynth.tabular.text.embedding import Encoder

        return None if self.embedder is None else Encoder(self.embedder)


def _lines(path: str) -> list[str]:
    from visynth.core.errors import DataError

    try:
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text file: {error}.") from error


@dataclass(frozen=True)
class SeriesOptions:
    """The real series and how to read them.

    Args:
        data: CSV or Parquet file with a row for each entity and time, or an .npz file of arrays.
        entity: column that names the entities; without it all rows are one series.
        time: column of times; without it rows follow one another.
        target: the class column, with one value for each entity.
        statics: further columns with one value for each entity.
        step: distance of two rows (seconds of dates); without times it says that rows are equally far apart.
        kinds: of columns where the data mislead, e.g. '{status: categorical}'.
        drop: columns to leave out.
        arrays: of an .npz file: names of the values [entities, channels, steps] and, if any, of the classes.
        scans: the values are lidar scans: least and most range, outside of which there was no echo.
        cut: cut series into stretches of so many rows.
    """

    data: str
    entity: str | None = None
    time: str | None = None
    target: str | None = None
    statics: list[str] | None = None
    step: float | None = None
    kinds: dict[str, str] | None = None
    drop: list[str] | None = None
    arrays: list[str] | None = None
    scans: list[float] | None = None
    cut: int | None = None

    def read(self, data: str | None = None, arrays: list[str] | None = None) -> Any:
        """The series of this file, or of another one of its kind; notes are printed on stderr.

        Raises:
            UsageError: options that do not fit the file.
        """
        from visynth.tabular.timeseries.arrays import from_arrays, stored_arrays
        from visynth.tabular.timeseries.cutting import cut
        from visynth.tabular.timeseries.lidar import from_scans
        from visynth.tabular.timeseries.reading import read_series

        path, named = data or self.data, arrays or self.arrays
        if path.endswith(".npz"):
            columns = {name: getattr(self, name) for name in ("entity", "time", "target", "statics", "kinds", "drop")}
            given = [f"--{name}" for name, value in columns.items() if value]
            if given or not named or len(named) > 2:
                raise UsageError(
                    f"an .npz file takes --arrays '[values, classes]' (or '[values]') and no columns, but got {given or named}."
                )
            numbers, classes = stored_arrays(path, named[0], named[1] if len(named) == 2 else None)
            if self.scans:
                least, most = self.scans[0], self.scans[-1]
                series = from_scans(numbers, classes, least=least, most=most, step=self.step or 1.0)
            else:
                series = from_arrays(numbers, classes, step=self.step or 1.0)
        else:
            if named or self.scans:
                raise UsageError("--arrays and --scans are for .npz files; columns have names of their own.")
            series = read_series(
                path, entity=self.entity, time=self.time, target=self.target, statics=self.statics or (), step=self.step,
                kinds=self.kinds, drop=self.drop or (),  # type: ignore[arg-type]
            )  # fmt: skip
        series = cut(series, self.cut) if self.cut else series
        for note in series.schema.notes:
            print(f"  {note}", file=sys.stderr)
        return series


def refuse(given: dict[str, Any], why: str) -> None:
    """Refuse options that would do nothing.

    Args:
        given: options as they are written, and their values; those that are empty were not given.
        why: after "but".

    Raises:
        UsageError: any of them was given.
    """
    names = [name for name, value in given.items() if value]
    if names:
        raise UsageError(f"got {' and '.join(names)}, but {why}.")
