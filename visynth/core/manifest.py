"""The renders folder: images in class folders (or in tar or Parquet shards), and ``metadata.jsonl`` with one line an
image, in the order of the plan's shards.

``summary.json`` is written last, so a folder without it is unfinished and is refused. Beside it lie ``plan.json`` (what
was to be rendered), ``members.jsonl`` (the real images behind the generator), ``README.md`` and ``croissant.json``, and no
other folders than the images', so that torchvision's ``ImageFolder`` and Hugging Face's ``imagefolder`` read class folders
as they are. Above 100,000 images the manifest is in parts, ``metadata-00000-of-00002.jsonl`` and so on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from visynth.core import members as members_file
from visynth.core.errors import IntegrityError, UsageError, choices, listing
from visynth.core.files import canonical_json, hash_file, locked, write_text
from visynth.core.folders import RENDERS, ROWS
from visynth.core.members import Member

SCHEMA = RENDERS
METADATA, PLAN, MEMBERS, SUMMARY = "metadata.jsonl", "plan.json", "members.jsonl", "summary.json"
SHARDS = "shards.jsonl"  # files of sets that are stored in archives
SUMMARY_SCHEMA = "visynth.summary/1"
SCORES, REVIEW = "scores.jsonl", "review.jsonl"  # made later, by the scorer and by reviewers
DECISIONS = ("accept", "reject")


@dataclass(frozen=True)
class Record:
    """One rendered image.

    Attributes:
        file_name: path below the folder, with forward slashes; in an archive, its name there.
        label: class name.
        seed: what ``sample`` was called with.
        generator: the generator's digest.
        options: sampler options.
        parents: names of the real images that it was made from.
        mask: run lengths of the labelled region, see :func:`encode_mask`, or None.
        boxes: (x1, y1, x2, y2) in pixels, ends exclusive.
        height: in pixels.
        width: in pixels.
        sha256: of the image's file.
        shard: the archive that holds it, or nothing.
    """

    file_name: str
    label: str
    seed: int
    generator: str
    options: Mapping[str, Any]
    parents: tuple[str, ...]
    mask: Mapping[str, Any] | None
    boxes: tuple[tuple[float, ...], ...]
    height: int
    width: int
    sha256: str
    shard: str = ""

    def to_line(self) -> str:
        return canonical_json({name: value for name, value in asdict(self).items() if name != "shard" or value})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        known = {name: values[name] for name in cls.__dataclass_fields__ if name != "shard"}
        known["shard"] = values.get("shard", "")
        known["parents"] = tuple(known["parents"])
        known["boxes"] = tuple(tuple(box) for box in known["boxes"])
        return cls(**known)


class Records(Sequence[Record]):
    """The lines of a manifest, read when they are asked for: a million of them take 8 MB.

    Args:
        files: the manifest's parts, in order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._starts = [_line_starts(path) for path in self._files]
        self._ends = np.cumsum([len(own) for own in self._starts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"there are {len(self)} records")
        part = int(np.searchsorted(self._ends, place, side="right"))
        line = place - (int(self._ends[part - 1]) if part else 0)
        with self._files[part].open("rb") as stream:  # opened anew: threads and forked workers read at once
            stream.seek(int(self._starts[part][line]))
            return _parsed(self._files[part], line + 1, stream.readline())

    def __iter__(self) -> Iterator[Record]:
        for path in self._files:
            with path.open("rb") as stream:
                for number, text in enumerate(stream, 1):
                    yield _parsed(path, number, text)


@dataclass(frozen=True)
class Renders:
    """A finished renders folder."""

    folder: Path
    plan: Mapping[str, Any]
    records: Sequence[Record]
    members: tuple[Member, ...]
    summary: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the generator's order."""
        return tuple(self.plan["classes"])

    def counts(self) -> dict[str, int]:
        counter = Counter(record.label for record in self.records)
        return {name: counter[name] for name in self.classes}

    def root(self) -> str:
        """Hex sha256 over every image file's (or archive's) name and content, in the plan's order: equal roots are equal
        sets, byte for byte."""
        return str(self.summary["root"])


def control_class(renders: Renders) -> str | None:
    """The class of the seam controls: the one class of a composed or inpainted set whose images are without any box,
    defect-free ones."""
    counts = renders.counts()
    empty = [n for n in renders.classes if counts[n] and not any(r.boxes for r in renders.records if r.label == n)]
    return empty[0] if len(empty) == 1 and renders.plan["kind"] in ("composite", "inpainted") else None


def is_finished(folder: Path) -> bool:
    """Whether a rendered set is whole."""
    return (folder / SUMMARY).is_file()


def read_renders(folder: str | Path, *, verify: bool = False) -> Renders:
    """Read a finished renders folder and check that every image of the manifest is there.

    Args:
        folder: what ``visynth render`` wrote.
        verify: also compare every file's sha256.

    Raises:
        IntegrityError: unfinished, of another schema, a torn line, missing or altered files (all listed).
        UsageError: a set of table rows.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise IntegrityError(f"there is no renders folder {folder}. Make one with 'visynth render'.")
    if not is_finished(folder):
        raise IntegrityError(
            f"{folder} has no {SUMMARY}: it is not a renders folder, or its rendering did not finish. "
            "Run the same 'visynth render' command again to finish it."
        )
    plan, summary = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (PLAN, SUMMARY))
    if plan.get("schema") == ROWS:
        raise UsageError(f"{folder} holds rows of a table, not images.")
    if plan.get("schema") != SCHEMA or summary.get("schema") != SUMMARY_SCHEMA:
        raise IntegrityError(
            f"{folder} has schemas {plan.get('schema')!r} and {summary.get('schema')!r}; this version reads {SCHEMA!r} "
            f"and {SUMMARY_SCHEMA!r}: render the set again."
        )
    records = read_records(folder, summary)
    files = listed_files(folder, plan, records)
    problems = [f"{name} is missing" for name, _ in files if not (folder / name).is_file()]
    if len(records) != summary["total"]:
        problems.append(f"the manifest has {len(records)} lines for {summary['total']} images")
    if verify and not problems:
        problems = altered_parts(folder, summary) + altered_files(folder, plan, records)
    if problems:
        raise IntegrityError(
            f"{folder} does not hold what its manifest says ({len(problems)} files):\n{listing(problems)}"
        )
    members = members_file.read(folder / MEMBERS) if (folder / MEMBERS).is_file() else []
    return Renders(folder, plan, records, tuple(members), summary)


def read_records(folder: Path, summary: Mapping[str, Any]) -> Records:
    """The manifest's lines; images are not looked at.

    Raises:
        IntegrityError: a part is missing.
    """
    parts = [folder / part["name"] for part in summary["manifest"]]
    missing = [path.name for path in parts if not path.is_file()]
    if missing:
        raise IntegrityError(f"{folder} has no {choices(missing)}: its manifest is not whole. Render the set again.")
    return Records(parts)


def listed_files(folder: Path, plan: Mapping[str, Any], records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    """Names and sha256 of the files that hold the images: each image's own, or the archives."""
    if not in_archives(plan):
        return ((record.file_name, record.sha256) for record in records)
    return map(listed_file, (folder / SHARDS).read_text(encoding="utf-8").split("\n")[:-1])


def in_archives(plan: Mapping[str, Any]) -> bool:
    """Whether a set's images lie in tar or Parquet shards, and not in files of their own."""
    return bool(plan["schema"] == SCHEMA and plan.get("format", "folders") != "folders")


def file_lists(plan: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """Names of those files of a finished set, of images or rows, whose lines name its other files."""
    return [SHARDS] if in_archives(plan) else [part["name"] for part in summary["manifest"]]


def listed_file(line: str) -> tuple[str, str]:
    """Name and sha256 of the file that such a line names."""
    row = json.loads(line)
    return row["name"] if "name" in row else row["file_name"], row["sha256"]


def altered_parts(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """Problems of the manifest itself: a label that was changed is as bad as an image."""
    parts = [(folder / part["name"], part["sha256"]) for part in summary["manifest"]]
    return [f"{path.name} was altered" for path, digest in parts if hash_file(path) != digest]


def altered_files(folder: Path, plan: Mapping[str, Any], records: Iterable[Record]) -> list[str]:
    """Problems of files whose content is not what the manifest says."""
    files = listed_files(folder, plan, records)
    return [f"{name} was altered" for name, digest in files if hash_file(folder / name) != digest]


def need_folders(renders: Renders) -> Renders:
    """The set, if its images lie in class folders.

    Raises:
        UsageError: they lie in archives.
    """
    if in_archives(renders.plan):
        raise UsageError(
            f"{renders.folder} holds its images in {renders.plan['format']} shards, for other tools; visynth reads class folders: render "
            "the same plan with --format folders."
        )
    return renders


def _line_starts(path: Path) -> NDArray[np.int64]:
    """Offset of each line of a file."""
    starts, place = [], 0
    with path.open("rb") as stream:
        for line in stream:
            starts.append(place)
            place += len(line)
    return np.array(starts, np.int64)


def _parsed(path: Path, number: int, text: bytes) -> Record:
    try:
        return Record.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} line {number} is not an image record ({error!r}).") from error


def read_scores(folder: str | Path) -> dict[str, dict[str, Any]]:
    """``{file name: scores}`` of ``scores.jsonl``, empty where there is none.

    Raises:
        IntegrityError: a line that is no score.
    """
    return {line["file_name"]: line for line in _sidecar(Path(folder) / SCORES, ("file_name", "agreement", "copy"))}


def read_reviews(folder: str | Path) -> dict[str, str]:
    """``{file name: "accept" or "reject"}`` of ``review.jsonl``; of several decisions on one image the last counts.

    Raises:
        IntegrityError: a line that is no decision.
    """
    path = Path(folder) / REVIEW
    lines = _sidecar(path, ("file_name", "decision"))
    wrong = [line["decision"] for line in lines if line["decision"] not in DECISIONS]
    if wrong:
        raise IntegrityError(f"{path} has the decision {wrong[0]!r}; decisions are {choices(DECISIONS)}.")
    return {line["file_name"]: line["decision"] for line in lines}


def write_reviews(renders: Renders, decisions: Mapping[str, str], reviewer: str = "") -> dict[str, int]:
    """Add decisions to ``review.jsonl``.

    Args:
        renders: the set that was looked at.
        decisions: ``{file name: "accept" or "reject"}``.
        reviewer: who decided.

    Returns:
        How many images are accepted, rejected and open after that.

    Raises:
        UsageError: no decision; files that the set does not have.
    """
    known = {record.file_name for record in renders.records}
    unknown = [name for name in decisions if name not in known]
    if unknown or not decisions:
        raise UsageError(
            f"{renders.folder} has no images {choices(unknown)}: name them as {METADATA} does, for instance "
            f"{min(known, default='')!r}."
            if unknown
            else "there is no decision to note: name files with --accept or --reject."
        )
    path = renders.folder / REVIEW
    lines = [{"file_name": n, "decision": d, "reviewer": reviewer} for n, d in decisions.items()]
    with locked(renders.folder):  # two reviewers at once: each adds to what the other wrote
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_text(path, before + "".join(canonical_json(line) + "\n" for line in lines))
    now = Counter(decision for name, decision in read_reviews(renders.folder).items() if name in known)
    return {"accept": now["accept"], "reject": now["reject"], "open": len(known) - now.total()}


def _sidecar(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            missing = [key for key in keys if key not in line]
        except (ValueError, TypeError) as error:
            raise IntegrityError(f"{path} line {number} is not JSON ({error}).") from error
        if missing or not isinstance(line, dict):
            raise IntegrityError(f"{path} line {number} must be an object with {choices(keys)}.")
        lines.append(line)
    return lines


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column-major, starting with the zeros.

    Example:
        >>> encode_mask(np.array([[False, True], [False, True]]))
        {'size': [2, 2], 'counts': [2, 2]}
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": ([0, *runs] if len(flat) and flat[0] else runs)}


def decode_mask(runs: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask ``[H, W]`` of run lengths.

    Example:
        >>> decode_mask({"size": [2, 2], "counts": [0, 1, 3]}).tolist()
        [[True, False], [False, False]]
    """
    counts: Sequence[int] = runs["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(tuple(runs["size"]), order="F")
