"""Members: one line per real image that a generator's fit saw or held out, so that nothing leaks unseen.

The leak guard and ``evaluate`` compare a candidate with the members three ways, cheapest first: the file's
sha256, the sha256 of the decoded pixels (survives re-saving), and a 64-bit perceptual hash of a 32x32 grey copy
at Hamming distance <= 4 (survives re-compression and small edits), which is told only where the finer structure of the
two images agrees as well: parts that merely look alike share their coarse structure. Plain images (blank tiles,
even stripes) are all alike, so that one of them meets another says nothing: such meetings are counted, not told. Source
of the hash: Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010), DCT hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import IntegrityError
from visynth.core.files import canonical_json, write_text

SPLITS = ("train", "val", "test")
BLOCK = 1024  # candidates compared at a time, so that memory stays flat
NEAR = 4  # Hamming distance up to which two perceptual hashes mean the same image
FINE = 40  # of 192 bits of finer structure, up to which it is the same: copies differ in up to 20, chance gives 96
PLAIN = 2.0  # grey levels of deviation, over the image or across even stripes, up to which it is plain
PLAIN_MARK = "plain"
SAME_FILE, SAME_PIXELS, NEARLY, BLANK = "same file", "same pixels", "near-duplicate", "equal blank image"


@dataclass(frozen=True)
class Member:
    """One real image. ``pixels`` is the sha256 of shape, dtype and decoded pixels; ``phash`` 16 hex digits; ``fine``
    see :func:`fine_hash`."""

    path: str
    label: str
    group: str
    split: str
    sha256: str
    pixels: str
    phash: str
    fine: str = ""


@dataclass(frozen=True)
class Overlap:
    """A candidate image that meets a member; ``how`` is ``"same file"``, ``"same pixels"``, ``"near-duplicate"`` or
    ``"equal blank image"``."""

    candidate: str
    member: Member
    how: str

    def __str__(self) -> str:
        return f"{self.candidate} is a {self.how} of {self.member.split} image {self.member.path}"


def pixel_hash(image: NDArray[Any]) -> str:
    """Hex sha256 of an image's shape, dtype and pixels (``[H, W, C]``)."""
    head = f"{image.shape}{image.dtype}".encode()
    return sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


def perceptual_hash(image: NDArray[Any]) -> str:
    """64-bit DCT hash of a 32x32 grey copy, as 16 hex digits.

    Args:
        image: ``[H, W, C]`` or ``[H, W]``, uint8 or uint16.

    Example:
        >>> ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
        >>> hamming(perceptual_hash(ramp), perceptual_hash(ramp // 2)) <= NEAR
        True
    """
    grey = image.astype(np.float32)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:8, :8].ravel()
    # The DC term only says how bright the image is; it takes no part in the threshold.
    bits = low > np.median(low[1:])
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def fine_hash(image: NDArray[Any]) -> str:
    """The image's finer structure: signs of the 192 middle frequencies of its 32x32 grey copy as 48 hex digits, or
    ``"plain"``.

    Args:
        image: ``[H, W, C]`` or ``[H, W]``, uint8 or uint16.

    Example:
        >>> fine_hash(np.full((40, 40), 255, np.uint8)), fine_hash(np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1)))
        ('plain', 'plain')
    """
    top = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
    grey = image.astype(np.float32) * np.float32(255 / top)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    if min(float((small - small.mean(axis=axis, keepdims=True)).std()) for axis in (0, 1)) <= PLAIN:
        return PLAIN_MARK
    middle = cv2.dct(small)[:16, :16]
    bits = np.concatenate([middle[:8, 8:].ravel(), middle[8:].ravel()]) > 0
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):048x}"


def hamming(first: str, second: str) -> int:
    """Bits in which two perceptual hashes differ.

    Example:
        >>> hamming("000000000000000f", "0000000000000001")
        3
    """
    return (int(first, 16) ^ int(second, 16)).bit_count()


def distances(hashes: Sequence[str], others: Sequence[str]) -> NDArray[np.uint8]:
    """Hamming distances ``[len(hashes), len(others)]`` of perceptual hashes."""
    bits = [np.array([int(h, 16) for h in side], dtype=np.uint64).reshape(-1) for side in (hashes, others)]
    return np.asarray(np.bitwise_count(bits[0][:, None] ^ bits[1][None, :]), dtype=np.uint8)


def merkle_root(members: Iterable[Member]) -> str:
    """Root of the binary hash tree over the members' canonical lines, sorted by path.

    Leaves and nodes are told apart by a first byte, as in RFC 6962, section 2.1.

    Example:
        >>> merkle_root([])[:8]
        'e3b0c442'
    """
    level = [sha256(b"\x00" + _line(m).encode()).digest() for m in sorted(members, key=lambda m: m.path)]
    if not level:
        return sha256(b"").hexdigest()
    while len(level) > 1:
        pairs = [sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + (level[-1:] if len(level) % 2 else [])
    return level[0].hex()


def write(path: str | Path, members: Iterable[Member]) -> None:
    """Write ``members.jsonl``, sorted by path."""
    write_text(path, as_text(members))


def as_text(members: Iterable[Member]) -> str:
    """What ``members.jsonl`` holds."""
    return "".join(_line(m) + "\n" for m in sorted(members, key=lambda m: m.path))


def read(path: str | Path) -> list[Member]:
    """Read ``members.jsonl``; a torn or foreign line is an IntegrityError that names it."""
    members = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            members.append(Member(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise IntegrityError(f"{path} line {number} is not a member record ({error}).") from error
    return members


def overlaps(candidates: Sequence[Member], members: Sequence[Member]) -> list[Overlap]:
    """Candidates that meet a member, each with its closest way of meeting; equal blank images among them, marked as
    such."""
    by_file: dict[str, list[Member]] = {}
    by_pixels: dict[str, list[Member]] = {}
    for member in members:
        by_file.setdefault(member.sha256, []).append(member)
        by_pixels.setdefault(member.pixels, []).append(member)
    meetings = []
    for first in range(0, len(candidates), BLOCK):
        rows = candidates[first : first + BLOCK]
        near = distances([c.phash for c in rows], [m.phash for m in members]) if members else None
        for row, candidate in enumerate(rows):
            how, same = SAME_FILE, by_file.get(candidate.sha256)
            if same is None:
                how, same = SAME_PIXELS, by_pixels.get(candidate.pixels)
            if same is not None:
                own = next((m for m in same if m.path == candidate.path), None)  # of several equal ones, itself
                how = BLANK if own is None and candidate.fine == PLAIN_MARK else how
                meetings.append(Overlap(candidate.path, own or same[0], how))
            elif near is not None and candidate.fine != PLAIN_MARK:
                order = np.argsort(near[row], kind="stable")[: (near[row] <= NEAR).sum()]
                like = next((members[int(i)] for i in order if _same_structure(candidate, members[int(i)])), None)
                if like is not None:
                    meetings.append(Overlap(candidate.path, like, NEARLY))
    return meetings


def _same_structure(first: Member, second: Member) -> bool:
    """Whether two images whose coarse structure agrees agree in the finer one, as far as it is known."""
    if PLAIN_MARK in (first.fine, second.fine):
        return False
    return not first.fine or not second.fine or hamming(first.fine, second.fine) <= FINE


def meetings(candidates: Sequence[Member], members: Sequence[Member]) -> tuple[dict[str, Member], dict[str, Member]]:
    """Match candidates to members: exact matches and near-duplicates, by path; equal blank images match nothing."""
    same: dict[str, Member] = {}
    like: dict[str, Member] = {}
    for overlap in overlaps(candidates, members):
        if overlap.how != BLANK:
            (like if overlap.how == NEARLY else same)[overlap.candidate] = overlap.member
    return same, like


def _line(member: Member) -> str:
    return canonical_json(asdict(member))
