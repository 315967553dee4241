"""One safe decoder: bytes on disk -> ``[H, W, C]`` uint8 or uint16, 1 to 8 channels, upright.

Pillow reads the header (with its format list closed, and caps on bytes and pixels checked first) and decodes what it
can hold; OpenCV decodes 16-bit PNG, tifffile decodes TIFF, because Pillow would cut both to 8 bits; of compressions
that tifffile does not undo, OpenCV and Pillow read what they can. Palette images become RGB(A), orientation is applied,
alpha is kept as the last channel.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from visynth.core.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 274  # tag of TIFF and EXIF
DRAFT_PIXELS = 1_000_000  # pixels of a JPEG above which it may be decoded smaller
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
    """Limits of a file: bytes on disk, pixels once decoded."""

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000


DEFAULT_LIMITS = Limits()


def decode(path: str | Path, limits: Limits = DEFAULT_LIMITS, at_least: tuple[int, int] | None = None) -> Array:
    """An image file as ``[H, W, C]`` uint8 or uint16 with 1 to 8 channels.

    Args:
        path: of the file.
        limits: caps on bytes and pixels.
        at_least: (height, width) that is enough: a JPEG of more than a megapixel is then decoded at a half, a quarter
            or an eighth of its size, whichever is no smaller, in a fraction of the time and memory. Other files come
            whole.

    Raises:
        DataError: empty, truncated, too large, of an unknown format or with unusual values; the reason is in the
            message, the path is not (callers gather many).
    """
    return decode_bytes(_read(Path(path), limits), limits, at_least)


def _read(path: Path, limits: Limits) -> bytes:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror})") from error
    if size == 0:
        raise DataError("is empty (0 bytes)")
    if size > limits.max_bytes:
        raise DataError(f"has {size:,} bytes, the limit is {limits.max_bytes:,}")
    return path.read_bytes()


def read(path: str | Path, limits: Limits = DEFAULT_LIMITS, at_least: tuple[int, int] | None = None) -> Array:
    """As :func:`decode`, with the path in the message: for callers that want this one file."""
    try:
        return decode(path, limits, at_least)
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def decode_bytes(data: bytes, limits: Limits = DEFAULT_LIMITS, at_least: tuple[int, int] | None = None) -> Array:
    """As :func:`decode`, from bytes.

    Example:
        >>> decode_bytes(encode_png(np.full((4, 6, 1), 9, np.uint8))).shape
        (4, 6, 1)
    """
    return _reduced(data, limits, at_least)[0]


def decode_reduced(path: str | Path, limits: Limits, at_least: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """As :func:`decode` with ``at_least``, and the whole image's (height, width), upright."""
    return _reduced(_read(Path(path), limits), limits, at_least)


def _reduced(data: bytes, limits: Limits, at_least: tuple[int, int] | None) -> tuple[Array, tuple[int, int]]:
    if data[:4] in TIFF_MAGIC:  # Pillow knows few kinds of TIFF
        array = _checked(lambda: _tiff(data, limits))
        return array, (array.shape[0], array.shape[1])
    image = _opened(data, limits)
    whole: tuple[int, int] | None = None  # of an image that is decoded smaller
    if at_least is not None and image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS:
        whole = (image.height, image.width)
        # EXIF may turn it: enough in either direction is enough in both.
        side = max(at_least)
        image.draft(None, (side, side))
    array = _checked(lambda: _pixels(image, data))
    if whole is None:
        return array, (array.shape[0], array.shape[1])
    turned = _orientation(image.getexif().get(ORIENTATION, 1)) >= 5
    return array, (whole[::-1] if turned else whole)


def decode_values(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Array:
    """A file's values as they are, of any type, ``[H, W, C]``: for masks, whose numbers mean classes or parts.

    Palettes stay indices where the first colour is black, so that 0 is nothing; other palettes are read by their
    colours.

    Raises:
        DataError: as :func:`decode`, but for the type of values.
    """
    data = _read(Path(path), limits)
    if data[:4] in TIFF_MAGIC:
        return _shaped(lambda: _tiff(data, limits, raw=True))
    image = _opened(data, limits)
    if image.mode != "P" or any((image.getpalette() or [0])[:3]):
        return _shaped(lambda: _pixels(image, data))
    return _shaped(lambda: np.asarray(_loaded(image)))


def _opened(data: bytes, limits: Limits) -> Image.Image:
    """The image with its header read and its size checked; its pixels are not decoded yet.

    Pillow's own ``open`` has a pixel limit of its own for the whole process, which a library must not change; so the
    readers of the formats that we take are asked directly, and our limit holds.
    """
    Image.preinit()
    Image.init()
    clean = _without_texts(data) if data.startswith(PNG_MAGIC) else data
    for name in FORMATS:
        make, accepts = Image.OPEN[name]
        if accepts is not None and accepts(clean[:16]) is not True:
            continue
        try:
            image: Image.Image = make(io.BytesIO(clean), "")
        except Exception as error:  # readers raise many kinds for damaged headers
            raise DataError(f"is not a readable {name} image ({error})") from error
        if image.width * image.height > limits.max_pixels:
            raise DataError(f"has {image.width}x{image.height} pixels, the limit is {limits.max_pixels:,}")
        return image
    raise DataError(f"is not a readable {'/'.join(FORMATS)}/TIFF image")


def _without_texts(png: bytes) -> bytes:
    """A PNG without text and colour profiles: long ones (prompts, histories of an editor) are refused by readers, and
    say nothing here."""
    kept, place = [png[:8]], 8
    while place + 12 <= len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        end = place + 12 + length
        if png[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[place:end])
        place = end
    return b"".join([*kept, png[place:]])


def _checked(read: Callable[[], Array]) -> Array:
    """Result of ``read`` as ``[H, W, C]``, checked to be an image."""
    array = _shaped(read)
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"has {array.dtype} values; allowed are 8- and 16-bit unsigned")
    return array


def _shaped(read: Callable[[], Array]) -> Array:
    try:
        array = read()
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise DataError(f"is damaged or truncated ({error})") from error
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or not 1 <= array.shape[2] <= 8:
        raise DataError(f"has shape {array.shape}; allowed are 1 to 8 channels")
    return np.ascontiguousarray(array)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return ImageOps.exif_transpose(image)


def _pixels(image: Image.Image, data: bytes) -> Array:
    if image.format == "PNG" and data[24] == 16:  # IHDR bit depth; Pillow would cut 16-bit colour to 8
        array = _by_opencv(data)
        if array is None:
            raise DataError("is damaged or truncated")
        image.load()  # an orientation may stand behind the pixels
        return _turned(array, _orientation(image.getexif().get(ORIENTATION, 1)))
    upright = _loaded(image)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return np.asarray(upright.convert(MODES.get(upright.mode, upright.mode)))


def _orientation(value: Any) -> int:
    """An orientation tag as 1 to 8; anything else means upright."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(array: Array, orientation: int) -> Array:
    """Pixels upright, by the orientation of TIFF 6.0 and EXIF 2.3 (1 to 8).

    Example:
        >>> _turned(np.array([[1, 2], [3, 4]]), 6).tolist()
        [[3, 1], [4, 2]]
    """
    moves: dict[int, Callable[[Array], Array]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    move = moves.get(orientation)
    return array if move is None else move(array)


def _tiff(data: bytes, limits: Limits, raw: bool = False) -> Array:
    """A TIFF's image, or with ``raw`` its values as they were written: indices of a palette, true as 255 whatever is
    white."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pages = [
            p for p in file.pages if not getattr(p, "is_reduced", False)
        ]  # thumbnails and pyramids are the same image
        if len(pages) > 1:
            raise DataError(f"is a TIFF with {len(pages)} pages; give single images")
        if page.imagelength * page.imagewidth > limits.max_pixels:
            raise DataError(f"has {page.imagewidth}x{page.imagelength} pixels, the limit is {limits.max_pixels:,}")
        tag = page.tags.get(ORIENTATION)
        orientation = _orientation(tag.value if tag is not None else 1)
        if page.photometric.name in ("SEPARATED", "CIELAB", "ICCLAB", "ITULAB", "YCBCR"):
            return _turned(_tiff_otherwise(data), orientation)  # Pillow knows what these colours look like
        try:
            array = page.asarray()
        except (
            ValueError,
            ImportError,
            RuntimeError,
        ):  # a compression that tifffile itself does not undo: LZW, JPEG, G4, zstd
            return _turned(_tiff_otherwise(data), orientation)
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not raw:
        array = (np.moveaxis(page.colormap, 0, -1)[array] >> 8).astype(np.uint8)
    # Planar files hold [C, H, W]; ours is [H, W, C].
    if array.ndim == 3 and array.shape[:2] != (page.imagelength, page.imagewidth):
        array = np.moveaxis(array, 0, -1)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if (
        page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        and np.issubdtype(array.dtype, np.unsignedinteger)
        and not raw
    ):
        array = np.iinfo(array.dtype).max - array
    return _turned(np.asarray(array), orientation)


def _by_opencv(data: bytes) -> Array | None:
    """Pixels as they are stored, not turned, colours as red, green, blue; None where OpenCV cannot read them."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None or array.ndim == 2:
        return array
    return np.asarray(array[:, :, [2, 1, 0, *range(3, array.shape[2])]])


def _tiff_otherwise(data: bytes) -> Array:
    """By OpenCV's and Pillow's own TIFF library, as it is stored: not turned; 16 bits stay 16 bits, white is white."""
    array = _by_opencv(data)
    if array is not None and array.dtype == np.uint16:
        return array
    Image.init()
    make, _ = Image.OPEN["TIFF"]
    image: Image.Image = make(io.BytesIO(data), "")
    image.load()
    return np.asarray(image.convert(MODES.get(image.mode, image.mode)))


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
    """TIFF bytes of ``[H, W, C]`` uint8 or uint16 with 1 to 8 channels, without a date, so equal input gives equal
    bytes."""
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
