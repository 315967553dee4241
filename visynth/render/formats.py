"""What a shard of images looks like as files: class folders, a WebDataset tar, or Hugging Face's Parquet.

Bytes are a function of the images alone: no dates, users or hosts stand in them.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from visynth.core.errors import MissingExtra
from visynth.core.manifest import Record
from visynth.render.plan import RenderPlan


@dataclass(frozen=True)
class Encoded:
    """An image as a file: its record, its class number, its bytes."""

    record: Record
    label: int
    data: bytes


Packed = tuple[dict[str, bytes], list[Record]]


def pack_folders(plan: RenderPlan, number: int, images: Sequence[Encoded]) -> Packed:
    """One file an image, in a folder of its class: what torchvision's ``ImageFolder`` and Hugging Face's
    ``imagefolder`` read."""
    return {own.record.file_name: own.data for own in images}, [own.record for own in images]


def pack_webdataset(plan: RenderPlan, number: int, images: Sequence[Encoded]) -> Packed:
    """One tar: for each image ``<key>.png`` (or ``.tif``), ``<key>.cls`` (class number) and ``<key>.json`` (its record).

    The format is WebDataset's (github.com/webdataset/webdataset): files of a sample stand together and share the part
    of their names before the first dot.
    """
    name = f"shard-{number:06d}.tar"
    stream = io.BytesIO()
    records = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for own in images:
            key = f"{own.label:04d}_{PurePosixPath(own.record.file_name).stem}"
            ending = PurePosixPath(own.record.file_name).suffix
            record = replace(own.record, file_name=f"{key}{ending}", shard=name)
            for file, data in (
                (record.file_name, own.data),
                (f"{key}.cls", str(own.label).encode()),
                (f"{key}.json", record.to_line().encode()),
            ):
                head = tarfile.TarInfo(file)  # no time, owner or group: equal images, equal bytes
                head.size, head.mode = len(data), 0o644
                tar.addfile(head, io.BytesIO(data))
            records.append(record)
    return {name: stream.getvalue()}, records


def pack_parquet(plan: RenderPlan, number: int, images: Sequence[Encoded]) -> Packed:
    """One Parquet file in Hugging Face's own layout: ``image`` (bytes and path) and ``label`` with the class names in the
    file's metadata, so that ``datasets`` reads it as it is; ``seed`` besides.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("Parquet needs pyarrow: pip install 'visynth[tabular]'.") from error
    name = f"data/train-{number:05d}-of-{plan.shards:05d}.parquet"
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(plan.classes), "_type": "ClassLabel"},
        "seed": {"dtype": "int64", "_type": "Value"},
    }
    kinds = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("seed", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table(
        {
            "image": [{"bytes": own.data, "path": own.record.file_name} for own in images],
            "label": [own.label for own in images],
            "seed": [own.record.seed for own in images],
        },
        schema=kinds,
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", compression_level=1)
    return {name: stream.getvalue()}, [replace(own.record, shard=name) for own in images]


PACKERS: dict[str, Callable[[RenderPlan, int, Sequence[Encoded]], Packed]] = {
    "folders": pack_folders,
    "webdataset": pack_webdataset,
    "parquet": pack_parquet,
}
