"""A fitted model as a folder, whatever it samples: what it is, its weights, the real data behind it, its card.

The folder holds ``generator.json`` (identity, card, versions), ``model.safetensors``, ``members.jsonl`` and
``README.md``. Never a pickle, never an import path: the identity names a *registered* network, see
:mod:`visynth.core.plugins`. Nothing here knows images, tables or text.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visynth.core import members as members_file
from visynth.core.errors import IntegrityError
from visynth.core.files import hash_json, write_bytes, write_json, write_text
from visynth.core.folders import new_folder, restore
from visynth.core.members import Member
from visynth.core.store import fetched, is_url

WEIGHTS, SPEC, MEMBERS, README = "model.safetensors", "generator.json", "members.jsonl", "README.md"
PRIVACY = "differential privacy"  # entry of a card: what a private training spent
FEDERATION = "federated training"  # entry of a card: over which sites it went, and how
VERSIONS = ("torch", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class Artifact:
    """Contents of an artifact's folder.

    Attributes:
        identity: plain JSON that, with the weights, decides every sample; it has ``schema``, ``network`` and
            ``classes``.
        weights: the safetensors file.
        members: the real data behind it.
        card: what people are told of it.

    Example:
        >>> one = Artifact({"schema": "visynth.generator/2", "network": "n", "classes": ["a"]}, b"")
        >>> one.digest == Artifact(dict(one.identity), b"", card={"author": "me"}).digest != Artifact(one.identity, b"x").digest
        True
    """

    identity: Mapping[str, Any]
    weights: bytes
    members: tuple[Member, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def weights_sha256(self) -> str:
        """Hex sha256 of the weights, which may be large."""
        return sha256(self.weights).hexdigest()

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of identity and weights: of what decides every sample."""
        return hash_json({**self.identity, "weights": self.weights_sha256})

    def save(self, folder: str | Path, readme: str, extra: Mapping[str, bytes] | None = None) -> Path:
        """Write the folder, with further files by name; it appears complete or not at all."""
        folder = Path(folder)
        with new_folder(folder) as new:
            for name, data in (extra or {}).items():
                write_bytes(new / name, data)
            write_bytes(new / WEIGHTS, self.weights)
            members_file.write(new / MEMBERS, self.members)
            write_json(new / SPEC, self._json())
            write_text(new / README, readme)
        return folder

    def _json(self) -> dict[str, Any]:
        return {
            **self.identity,
            "weights_sha256": self.weights_sha256,
            "digest": self.digest,
            "members_root": members_file.merkle_root(self.members),
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
            "card": dict(self.card),
        }


OTHER_KEYS = ("weights_sha256", "digest", "members_root", "versions", "card")


def load_artifact(path: str | Path, schemas: tuple[str, ...]) -> Artifact:
    """A folder's content, after checking that not one bit of it was changed.

    Args:
        path: a folder, an object store's address, or the id of a Hugging Face hub repository that holds one.
        schemas: that the caller reads.

    Raises:
        IntegrityError: a file is missing, altered, or of another schema.
    """
    folder = local_folder(path)
    said = read_spec(folder, schemas)
    identity = {key: value for key, value in said.items() if key not in OTHER_KEYS}
    weights, card = (folder / WEIGHTS).read_bytes(), dict(said["card"])
    artifact = Artifact(identity, weights, tuple(members_file.read(folder / MEMBERS)), card)
    if artifact.weights_sha256 != said["weights_sha256"]:
        raise IntegrityError(
            f"{folder / WEIGHTS} was altered: sha256 is {artifact.weights_sha256[:16]}..., generator.json says "
            f"{said['weights_sha256'][:16]}... Copy the folder again or fit the generator anew."
        )
    if members_file.merkle_root(artifact.members) != said["members_root"]:
        raise IntegrityError(f"{folder / MEMBERS} was altered: it does not match members_root in generator.json.")
    if artifact.digest != said["digest"]:
        raise IntegrityError(f"{folder / SPEC} was altered: its content does not match its own digest.")
    return artifact


def read_spec(folder: Path, schemas: tuple[str, ...]) -> dict[str, Any]:
    """``generator.json`` of a complete folder; weights are not read.

    Raises:
        IntegrityError: a file is missing, or this one is no JSON or of another schema.
    """
    missing = [name for name in (SPEC, WEIGHTS, MEMBERS) if not (folder / name).is_file()]
    if missing:
        raise IntegrityError(
            f"{folder} is not a generator folder: {', '.join(missing)} is missing. Make one with 'visynth fit'."
        )
    try:
        said = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{folder / SPEC} is not JSON ({error}): the folder was altered or cut short.") from error
    if not isinstance(said, dict) or said.get("schema") not in schemas:
        schema = said.get("schema") if isinstance(said, dict) else None
        raise IntegrityError(
            f"{folder / SPEC} has schema {schema!r}; this version reads {' and '.join(map(repr, schemas))}."
        )
    return said


def local_folder(path: str | Path) -> Path:
    """The folder at a path, or the files of a hub repository or an object store's folder in the cache.

    Raises:
        IntegrityError: neither is there.
    """
    if is_url(path):
        return fetched(str(path), (SPEC, WEIGHTS, MEMBERS))
    folder = Path(path)
    restore(folder)
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/")):
        if not folder.is_dir():
            raise IntegrityError(f"there is no generator folder at {path}. Make one with 'visynth fit'.")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=[SPEC, WEIGHTS, MEMBERS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise IntegrityError(
            f"there is no folder {path}, and no hub repository of that name could be read ({error})."
        ) from error


def federated_origin(card: Mapping[str, Any]) -> str:
    """What a card says of a federated training, as a sentence."""
    said = card[FEDERATION]
    return (
        f"Trained over {said['sites']} sites in {said['rounds']} rounds ({said['algorithm']}, {said['local steps']} local steps each). "
        "Their images stayed with them, and no fingerprints of them are kept."
    )


def promise(card: Mapping[str, Any]) -> str:
    """What a card says of differential privacy, as a sentence."""
    spent = card.get(PRIVACY)
    if not spent:
        return "It was fitted without differential privacy."
    said = (
        f"It was fitted with differential privacy: epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for each "
        f"{spent['unit']}, preprocessing included; neighbours: {spent['adjacency']}."
    )
    return said + (f" Not private all the same: {spent['not private']}." if "not private" in spent else "")
