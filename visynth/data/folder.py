"""Class folders: ``root/<class>/*.png``, or ``root/{train,val,test}/<class>/*.png``."""

from __future__ import annotations

import os
from pathlib import Path

from visynth.core.codec import EXTENSIONS
from visynth.core.errors import DataError, choices, raise_all
from visynth.data.imageset import BadFile, Item

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
ASIDE = ("unlabeled", "unlabelled", "unsup", "extra", "ignore")  # beside splits, images without a class


MASK_SUFFIXES = ("_mask", "_label", "_gt", "_seg", "-mask", ".mask")  # after an image's name, in lower case


def read_folder(
    root: Path, mask_suffix: str | None = None, beside: bool = True
) -> tuple[list[Item], list[BadFile], list[str]]:
    """Items of a folder of class folders, what is not an image as bad, and what is to be told; hidden files are passed
    over.

    A file beside an image that has its name and a mask's suffix is the image's mask, not another image of the class.

    Raises:
        DataError: no such folder, no class folder with images, the class folders lie one level deeper, or splits stand
            beside classes.

    Example:
        >>> read_folder(Path("no/such"))
        Traceback (most recent call last):
        visynth.core.errors.DataError: there is no folder no/such. Give the folder that holds one subfolder per class.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}. Give the folder that holds one subfolder per class.")
    _refuse_other_formats(root)
    folders = _subfolders(root)
    splits = [f for f in folders if f.name.lower() in SPLIT_WORDS]
    rest = [f for f in folders if f not in splits]
    notes: list[str] = []
    if any(SPLIT_WORDS[f.name.lower()] == "train" and _subfolders(f) for f in splits):
        flat = [f for f in splits if not _subfolders(f)]
        loose = [f"{f.name}/ holds {_count(f)} images without class folders" for f in flat if _count(f)]
        if loose:
            raise DataError(
                f"{root}: {'; '.join(loose)}, while train/ has some: put them into class folders, or move them away."
            )
        notes += [f"the split folder {f.name}/ is empty" for f in flat]
        splits = [f for f in splits if f not in flat]
        aside = [f for f in rest if f.name.lower() in ASIDE]
        if len(aside) < len(rest):
            raise DataError(
                f"{root} has split folders ({choices(f.name for f in splits)}) beside others "
                f"({choices(f.name for f in rest if f not in aside)}), "
                "which are neither splits nor classes here: move them away, or give a list (CSV) that says what each "
                "image is."
            )
        notes += [f"{_count(f)} images in {f.name}/ are not used: they have no class" for f in aside]
        items: list[Item] = []
        bad: list[BadFile] = []
        for folder in splits:
            below, wrong = _classes(folder, root, SPLIT_WORDS[folder.name.lower()], mask_suffix, beside, notes)
            items, bad = items + below, bad + wrong
        return items, bad, notes
    items, bad = _classes(root, root, "", mask_suffix, beside, notes)
    return items, bad, notes


def _classes(
    root: Path, base: Path, split: str, mask_suffix: str | None, beside: bool, notes: list[str]
) -> tuple[list[Item], list[BadFile]]:
    folders = _subfolders(root)
    if not any(_has_images(folder) for folder in folders):
        _refuse(root, folders)
    items: list[Item] = []
    bad: list[BadFile] = []
    masks = 0
    loose = sum(p.is_file() and p.suffix.lower() in EXTENSIONS for p in root.iterdir())
    if loose:
        notes.append(f"{loose} images directly in {root.name}/ lie in no class folder and are not used")
    for folder in folders:
        paths = _walk(folder)
        names = {p.with_suffix("") for p in paths if p.suffix.lower() in EXTENSIONS}
        own: dict[Path, list[Path]] = {}
        for path in [p for p in paths if beside and p.suffix.lower() in EXTENSIONS]:
            image = _image_of(path, names, mask_suffix)
            if image is not None:
                own.setdefault(image, []).append(path)
        doubled = {image: pairs for image, pairs in own.items() if len(pairs) > 1}
        raise_all(
            str(root),
            [f"{i.name} has several masks beside it: {choices(p.name for p in f)}" for i, f in doubled.items()],
        )
        taken = {pairs[0] for pairs in own.values()}
        count = len(items)
        for path in paths:
            name = path.relative_to(base).as_posix()
            if path in taken:
                continue
            if path.suffix.lower() not in EXTENSIONS:
                bad.append(BadFile(name, f"is not an image file (known endings: {', '.join(EXTENSIONS)})"))
            elif not path.exists():
                bad.append(BadFile(name, "is a link to a file that does not exist"))
            else:
                items.append(
                    Item(
                        path,
                        name,
                        (folder.name,),
                        split=split,
                        mask=next(iter(own.get(path.with_suffix(""), [])), None),
                    )
                )
        masks += len(own)
        if len(items) == count:
            notes.append(f"the class folder {folder.relative_to(base)} has no images: it is no class here")
    if masks:
        notes.append(
            f"{masks} files beside images are their masks by name, not images of the class (--masks DIR says that "
            "masks lie elsewhere)"
        )
    return items, bad


def _image_of(path: Path, names: set[Path], mask_suffix: str | None) -> Path | None:
    """The image, without its ending, that a file is the mask of by its name, or None."""
    stem = path.with_suffix("")
    for suffix in (mask_suffix,) if mask_suffix else MASK_SUFFIXES:
        if stem.name.lower().endswith(suffix.lower()):
            image = stem.with_name(stem.name[: -len(suffix)])
            if image in names:
                return image
    return None


def _walk(folder: Path) -> list[Path]:
    """Files and dead links below a folder, sorted; links to folders are followed, each real folder once."""
    paths, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not _hidden(Path(f))]
        paths += [Path(here) / file for file in files if not _hidden(Path(file))]
    return sorted(paths)


def _refuse_other_formats(root: Path) -> None:
    """Folders of detection sets in other formats: say which, instead of reading half of them.

    Raises:
        DataError: YOLO, Pascal VOC or LabelMe, with the way to what is read.
    """
    hint = (
        "Convert it to COCO (one JSON file), which is read with boxes and masks, or to a CSV with a file and a "
        "label column."
    )
    if (root / "data.yaml").is_file() or (
        (root / "images").is_dir() and (root / "labels").is_dir() and any((root / "labels").rglob("*.txt"))
    ):
        raise DataError(f"{root} looks like a YOLO set (images/ and labels/*.txt). {hint}")
    if (root / "Annotations").is_dir() and any((root / "Annotations").glob("*.xml")):
        raise DataError(f"{root} looks like a Pascal VOC set (Annotations/*.xml). {hint}")
    flat = [p for p in root.iterdir() if p.is_file()]
    pairs = [p for p in flat if p.suffix == ".json" and any(p.with_suffix(e) in flat for e in EXTENSIONS)]
    if pairs:
        raise DataError(f"{root} looks like a LabelMe set ({pairs[0].name} beside its image). {hint}")


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
            f"{root} holds {flat} images but no class folders. Put them in one subfolder per class, or give a CSV, "
            "JSONL or COCO file that labels them."
        )
    readable = sorted(p.name for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json", ".npz"))
    hint = f" It holds {choices(readable)}: give such a file itself, if it is the set." if readable else ""
    raise DataError(f"{root} holds no images. Expected <root>/<class>/<image>{'|'.join(EXTENSIONS)}.{hint}")


def _count(folder: Path) -> int:
    return sum(p.suffix.lower() in EXTENSIONS for p in _walk(folder))


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not _hidden(Path(p.name)))


def _hidden(name: Path) -> bool:
    """Hidden files, and what archives of macOS leave beside the real ones; ``__background__`` is a class."""
    return name.name.startswith(".") or name.name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _has_images(folder: Path) -> bool:
    return any(p.suffix.lower() in EXTENSIONS for p in folder.iterdir() if p.is_file())
