"""Class folders: ``root/<class>/*.png``, or ``root/{train,val,test}/<class>/*.png``."""

from __future__ import annotations

from pathlib import Path

from visynth.data.decode import EXTENSIONS
from visynth.data.items import BadFile, Item
from visynth.errors import DataError, choices

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def read_folder(root: Path) -> tuple[list[Item], list[BadFile]]:
    """Items of a folder of class folders; what is not an image is listed as bad, hidden files are passed over.

    Raises:
        DataError: no such folder, no class folder with images, or the class folders lie one level deeper.

    Example:
        >>> read_folder(Path("no/such"))
        Traceback (most recent call last):
        visynth.errors.DataError: there is no folder no/such. Give the folder that holds one subfolder per class.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}. Give the folder that holds one subfolder per class.")
    folders = _subfolders(root)
    if folders and all(f.name.lower() in SPLIT_WORDS for f in folders):
        items: list[Item] = []
        bad: list[BadFile] = []
        for folder in folders:
            found, rest = _classes(folder, root, SPLIT_WORDS[folder.name.lower()])
            items, bad = items + found, bad + rest
        return items, bad
    return _classes(root, root, "")


def _classes(root: Path, base: Path, split: str) -> tuple[list[Item], list[BadFile]]:
    folders = _subfolders(root)
    if not any(_has_images(folder) for folder in folders):
        _refuse(root, folders)
    items, bad = [], []
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(root))):
            name = path.relative_to(base).as_posix()
            if path.suffix.lower() in EXTENSIONS:
                items.append(Item(path, name, (folder.name,), split=split))
            else:
                bad.append(BadFile(name, f"is not an image file (known endings: {', '.join(EXTENSIONS)})"))
    return items, bad


def _refuse(root: Path, folders: list[Path]) -> None:
    """A root without class folders: name the folder that was probably meant."""
    deeper = {f: sum(_has_images(inner) for inner in _subfolders(f)) for f in folders}
    likely = [
        f
        for f in sorted(deeper, key=lambda f: (f.name.lower() not in ("images", "train", "data"), -deeper[f]))
        if deeper[f] > 1
    ]
    if likely:
        others = f" (its subfolders {choices(f.name for f in folders)} hold only folders)"
        raise DataError(f"{root} holds no class folders with images{others}. Did you mean {likely[0]}?")
    flat = sum(p.suffix.lower() in EXTENSIONS for p in root.iterdir() if p.is_file())
    if flat:
        raise DataError(
            f"{root} holds {flat} images but no class folders. Put them in one subfolder per class, or give a CSV, JSONL or COCO file that labels them."
        )
    raise DataError(f"{root} holds no images. Expected <root>/<class>/<image>{'|'.join(EXTENSIONS)}.")


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not _hidden(Path(p.name)))


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "__")) for part in relative.parts)


def _has_images(folder: Path) -> bool:
    return any(p.suffix.lower() in EXTENSIONS for p in folder.iterdir() if p.is_file())
