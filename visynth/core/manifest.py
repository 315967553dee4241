"""The renders folder: class folders of images, and ``metadata.jsonl`` with one line an image, sorted by file name.

``metadata.jsonl`` is written last, so a folder without it is unfinished and is refused. Beside it lie ``plan.json``
(what was to be rendered), ``members.jsonl`` (the real images behind the generator) and nothing else, so that
torchvision's ``ImageFolder`` and Hugging Face's ``imagefolder`` read the folder as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import members as members_file
from visynth.core.errors import IntegrityError, UsageError, choices, listing
from visynth.core.files import canonical_json, hash_file, locked, write_text
from visynth.core.folders import RENDERS
from visynth.core.members import Member

SCHEMA = RENDERS
METADATA, PLAN, MEMBERS = "metadata.jsonl", "plan.json", "members.jsonl"
SCORES, REVIEW = "scores.jsonl", "review.jsonl"  # made later, by the scorer and by reviewers
DECISIONS = ("accept", "reject")


@dataclass(frozen=True)
class Record:
    """One rendered image.

    Attributes:
        file_name: path below the folder, with forward slashes.
        label: class name.
        seed: what ``sample`` was called with.
        generator: the generator's digest.
        options: sampler options.
        parents: names of the real images that it was made from.
        mask: run lengths of the labelled region, see :func:`encode_mask`, or None.
        boxes: (x1, y1, x2, y2) in pixels, ends exclusive.
        height: in pixels.
        width: in pixels.
        sha256: of the file.
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

    def to_line(self) -> str:
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        known = {name: values[name] for name in cls.__dataclass_fields__}
        known["parents"] = tuple(known["parents"])
        known["boxes"] = tuple(tuple(box) for box in known["boxes"])
        return cls(**known)


@dataclass(frozen=True)
class Renders:
    """A finished renders folder."""

    folder: Path
    plan: Mapping[str, Any]
    records: tuple[Record, ...]
    members: tuple[Member, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the generator's order."""
        return tuple(self.plan["classes"])

    def counts(self) -> dict[str, int]:
        counter = Counter(record.label for record in self.records)
        return {name: counter[name] for name in self.classes}

    def root(self) -> str:
        """Hex sha256 over every file's name and content: equal roots are equal sets, byte for byte."""
        return root_hash(self.records)


def control_class(renders: Renders) -> str | None:
    """The class of the seam controls: the one class of a composed or inpainted set whose images are without any box,
    defect-free ones."""
    counts = renders.counts()
    empty = [n for n in renders.classes if counts[n] and not any(r.boxes for r in renders.records if r.label == n)]
    return empty[0] if len(empty) == 1 and renders.plan["kind"] in ("composite", "inpainted") else None


def root_hash(records: Iterable[Record]) -> str:
    digest = sha256()
    for record in sorted(records, key=lambda r: r.file_name):
        digest.update(f"{record.file_name} {record.sha256}\n".encode())
    return digest.hexdigest()


def write_records(folder: Path, records: Iterable[Record]) -> None:
    """Write ``metadata.jsonl``: with it the folder is finished."""
    ordered = sorted(records, key=lambda r: r.file_name)
    write_text(folder / METADATA, "".join(record.to_line() + "\n" for record in ordered))


def read_renders(folder: str | Path, *, verify: bool = False) -> Renders:
    """Read a finished renders folder and check that every image of the manifest is there.

    Args:
        folder: what ``visynth render`` wrote.
        verify: also compare every file's sha256.

    Raises:
        IntegrityError: unfinished, of another schema, a torn line, missing or altered files (all listed).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise IntegrityError(f"there is no renders folder {folder}. Make one with 'visynth render'.")
    if not (folder / METADATA).is_file():
        raise IntegrityError(
            f"{folder} has no {METADATA}: it is not a renders folder, or its rendering did not finish. "
            "Run the same 'visynth render' command again to finish it."
        )
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    if plan.get("schema") != SCHEMA:
        raise IntegrityError(
            f"{folder / PLAN} has schema {plan.get('schema')!r}; this version reads {SCHEMA!r}: render the set again."
        )
    records = read_records(folder)
    problems = [f"{r.file_name} is missing" for r in records if not (folder / r.file_name).is_file()]
    if verify and not problems:
        problems = [f"{r.file_name} was altered" for r in records if hash_file(folder / r.file_name) != r.sha256]
    if problems:
        raise IntegrityError(
            f"{folder} does not hold what its manifest says ({len(problems)} files):\n{listing(problems)}"
        )
    members = members_file.read(folder / MEMBERS) if (folder / MEMBERS).is_file() else []
    return Renders(folder, plan, tuple(records), tuple(members))


def read_records(folder: Path) -> list[Record]:
    """The lines of ``metadata.jsonl``; files are not looked at.

    Raises:
        IntegrityError: a line that is no record.
    """
    records = []
    for number, line in enumerate((folder / METADATA).read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(Record.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{folder / METADATA} line {number} is not an image record ({error!r}).") from error
    return records


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
