"""One safe decoder: bytes on disk -> ``[H, W, C]`` uint8 or uint16, 1 to 8 channels, upright.

Pillow reads the header (with its format list closed, and caps on bytes and pixels checked first) and decodes what it
can hold; OpenCV decodes 16-bit PNG, tifffile decodes TIFF, because Pillow would cut both to 8 bits. Palette images become
RGB(A), EXIF rotation is applied, alpha is kept as the last channel.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from visynth.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
MODES = {
    "1": "L",
    "P": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
}

Array = NDArray[Any]


@dataclass(frozen=True)
class Limits:
    """What a file may be: bytes on disk, pixels once decoded."""

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000


DEFAULT_LIMITS = Limits()


def decode(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Array:
    """An image file as ``[H, W, C]`` uint8 or uint16 with 1 to 8 channels.

    Raises:
        DataError: empty, truncated, too large, of an unknown format or with unusual values; the reason is in the
            message, the path is not (callers gather many).
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror})") from error
    if size == 0:
        raise DataError("is empty (0 bytes)")
    if size > limits.max_bytes:
        raise DataError(f"has {size:,} bytes, the limit is {limits.max_bytes:,}")
    return decode_bytes(path.read_bytes(), limits)


def read(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Array:
    """As :func:`decode`, with the path in the message: for callers that want this one file."""
    try:
        return decode(path, limits)
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def decode_bytes(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Array:
    """As :func:`decode`, from bytes.

    Example:
        >>> decode_bytes(encode_png(np.full((4, 6, 1), 9, np.uint8))).shape
        (4, 6, 1)
    """
    if data[:4] in TIFF_MAGIC:  # Pillow knows few kinds of TIFF
        return _checked(lambda: _tiff(data, limits))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"has too many pixels, the limit is {limits.max_pixels:,}") from error
    except Exception as error:
        raise DataError(f"is not a readable {'/'.join(FORMATS)}/TIFF image") from error
    if image.width * image.height > limits.max_pixels:
        raise DataError(f"has {image.width}x{image.height} pixels, the limit is {limits.max_pixels:,}")

    return _checked(lambda: _pixels(image, data))


def _checked(read: Callable[[], Array]) -> Array:
    """What ``read`` gives, as ``[H, W, C]``, if it is what an image may be."""
    try:
        array = read()
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise DataError(f"is damaged or truncated ({error})") from error
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"has {array.dtype} values; allowed are 8- and 16-bit unsigned")
    if array.ndim != 3 or not 1 <= array.shape[2] <= 8:
        raise DataError(f"has shape {array.shape}; allowed are 1 to 8 channels")
    return np.ascontiguousarray(array)


def _pixels(image: Image.Image, data: bytes) -> Array:
    if image.format == "PNG" and data[24] == 16:  # IHDR bit depth; Pillow would cut 16-bit colour to 8
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None:
            raise DataError("is damaged or truncated")
        return array if array.ndim == 2 else array[:, :, [2, 1, 0, *range(3, array.shape[2])]]
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return np.asarray(upright.convert(MODES.get(upright.mode, upright.mode)))


def _tiff(data: bytes, limits: Limits) -> Array:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > 1 and len(file.series) > 1:
            raise DataError(f"is a TIFF with {len(file.series)} images; give single images")
        page = file.pages[0]
        if page.imagelength * page.imagewidth > limits.max_pixels:
            raise DataError(f"has {page.imagewidth}x{page.imagelength} pixels, the limit is {limits.max_pixels:,}")
        array = file.asarray()
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        array = (np.moveaxis(page.colormap, 0, -1)[array] >> 8).astype(np.uint8)
    # Planar files hold [C, H, W]; ours is [H, W, C].
    if array.ndim == 3 and array.shape[:2] != (page.imagelength, page.imagewidth):
        array = np.moveaxis(array, 0, -1)
    return np.asarray(array)


def encode_png(image: Array, xmp: bytes | None = None) -> bytes:
    """PNG bytes of ``[H, W, C]`` uint8 or uint16 with 1, 3 or 4 channels, with an XMP packet if given.

    Raises:
        DataError: PNG cannot hold that many channels: use TIFF.
    """
    if image.shape[2] not in (1, 3, 4):
        raise DataError(f"PNG holds 1, 3 or 4 channels, but the image has {image.shape[2]}: use TIFF")
    ordered = image if image.shape[2] == 1 else image[:, :, [2, 1, 0, *range(3, image.shape[2])]]
    ordered = np.ascontiguousarray(ordered)
    done, data = cv2.imencode(".png", ordered)
    if not done:
        raise DataError(f"OpenCV cannot encode {image.shape} {image.dtype} as PNG")
    return data.tobytes() if xmp is None else _with_xmp(data.tobytes(), xmp)


def _with_xmp(png: bytes, xmp: bytes) -> bytes:
    """A PNG file with an XMP packet where its specification wants it: in an iTXt chunk, here right after the header.

    OpenCV's own writer puts XMP into a tEXt chunk, which Pillow and others do not take for XMP, and reads the packet as
    a C string, so that without a final zero equal images got unequal bytes.
    """
    body = b"iTXt" + b"XML:com.adobe.xmp" + 5 * b"\0" + xmp
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


def encode_tiff(image: Array, xmp: bytes | None = None) -> bytes:
    """TIFF bytes of ``[H, W, C]`` uint8 or uint16 with 1 to 8 channels, without a date, so equal input gives equal bytes."""
    import tifffile

    channels = image.shape[2]
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        image[:, :, 0] if channels == 1 else image,
        photometric="rgb" if channels in (3, 4) else "minisblack",
        planarconfig=None if channels == 1 else "contig",
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression="zlib",
        metadata=None,
        software="visynth",
        datetime=None,
        extratags=[(700, 1, len(xmp), xmp, True)] if xmp else [],
    )
    return stream.getvalue()
