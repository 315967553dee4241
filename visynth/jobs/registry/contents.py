"""What a version is: a generator's files and the evidence for it, named by the hash of their names and hashes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from visynth.core.artifact import MEMBERS, SPEC, WEIGHTS
from visynth.core.errors import IntegrityError, listing
from visynth.core.files import hash_file
from visynth.core.folders import RECORD

SUMS = "SHA256SUMS"
EVIDENCE, DOWNSTREAM = "evidence", "downstream"
BESIDE = (f"{EVIDENCE}/", f"{DOWNSTREAM}/")  # folders that a version has beside its generator


@dataclass(frozen=True)
class Contents:
    """Files of a version before they are kept.

    Attributes:
        files: to copy, by their names in the version.
        evidence: to write, by name.
        sums: the text of ``SHA256SUMS``, which ``sha256sum -c`` reads.
    """

    files: Mapping[str, Path]
    evidence: Mapping[str, bytes]
    sums: str

    @property
    def version(self) -> str:
        """Hex sha256 of ``sums``."""
        return sha256(self.sums.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Copy all into an empty folder, read-only and on the disk."""
        for name, path in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        for name, data in self.evidence.items():
            (folder / EVIDENCE).mkdir(exist_ok=True)
            (folder / EVIDENCE / name).write_bytes(data)
        (folder / SUMS).write_text(self.sums)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
                _sync(path)


def contents_of(
    generator: str | Path, evidence: Mapping[str, bytes], module: Mapping[str, Path] | None = None
) -> Contents:
    """A generator's folder as it would be kept. What an earlier version that it came from had beside it is left behind.

    Args:
        generator: the folder.
        evidence: files by name.
        module: files by name of a module that belongs to it.

    Raises:
        IntegrityError: the folder is no generator, or was altered.
    """
    from visynth.core.loading import load_generator

    generator = Path(generator)
    load_generator(generator)  # not one bit of it was changed
    files = {p.relative_to(generator).as_posix(): p for p in sorted(generator.rglob("*")) if p.is_file()}
    kept = {n: p for n, p in files.items() if n not in (RECORD, SUMS) and not n.startswith(BESIDE)}
    kept |= {f"{DOWNSTREAM}/{name}": path for name, path in (module or {}).items()}
    sums = {name: hash_file(path) for name, path in kept.items()}
    sums |= {f"{EVIDENCE}/{name}": sha256(data).hexdigest() for name, data in evidence.items()}
    return Contents(kept, evidence, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def check_contents(folder: Path, version: str) -> Path:
    """A version's folder, after checking every file.

    Raises:
        IntegrityError: files are missing, altered or too many.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise IntegrityError(f"version {version[:12]} has no {SUMS} in {folder}: it is not whole.")
    text = sums.read_text(encoding="utf-8")
    problems = [] if sha256(text.encode()).hexdigest() == version else [f"{SUMS} was altered"]
    listed = {line[66:]: line[:64] for line in text.splitlines()}
    here = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {SUMS, RECORD}
    problems += [f"{name} is missing" for name in sorted(listed.keys() - here)]
    problems += [f"{name} does not belong there" for name in sorted(here - listed.keys())]
    problems += [
        f"{name} was altered" for name in sorted(here & listed.keys()) if hash_file(folder / name) != listed[name]
    ]
    problems += [f"{name} is missing" for name in (SPEC, WEIGHTS, MEMBERS) if name not in listed]
    if problems:
        raise IntegrityError(f"version {version[:12]} in {folder} is not what was added:\n{listing(problems)}")
    return folder


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
