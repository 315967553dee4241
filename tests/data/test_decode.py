"""Every kind of image file that users have, good and bad."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from visynth.data.decode import Limits, decode, decode_bytes, encode_png, encode_tiff
from visynth.errors import DataError


def by_pillow(image: Image.Image, form: str = "PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **kwargs)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip(picture, dtype: str, channels: int) -> None:
    image = picture(9, 7, channels, dtype)
    back = decode_bytes(encode_png(image))
    assert back.dtype == image.dtype
    assert (back == image).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", range(1, 9))
def test_tiff_round_trip(picture, dtype: str, channels: int) -> None:
    image = picture(9, 7, channels, dtype)
    data = encode_tiff(image, b"<xmp/>")
    back = decode_bytes(data)
    assert back.dtype == image.dtype
    assert (back == image).all()
    assert encode_tiff(image, b"<xmp/>") == data
    assert b"<xmp/>" in data


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_png_refuses_what_it_cannot_hold(picture, channels: int) -> None:
    with pytest.raises(DataError, match="use TIFF"):
        encode_png(picture(4, 4, channels))


def test_png_bytes_are_pillow_readable_and_equal(picture) -> None:
    image = picture(9, 7, 3)
    assert (np.asarray(Image.open(io.BytesIO(encode_png(image)))) == image).all()


@pytest.mark.parametrize(
    ("mode", "shape"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("LA", 2), ("P", 3), ("1", 1), ("CMYK", 3), ("I;16", 1)]
)
def test_pillow_modes(mode: str, shape: int) -> None:
    base = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    image = (
        Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000) if mode == "I;16" else base.convert(mode)
    )
    decoded = decode_bytes(by_pillow(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert decoded.shape == (6, 8, shape)
    assert decoded.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    if mode == "I;16":
        assert decoded[5, 7, 0] == 47000


def test_palette_with_transparency_keeps_its_alpha() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50] + [0] * 762)
    decoded = decode_bytes(by_pillow(image, transparency=1))
    assert decoded[0, 0].tolist() == [200, 100, 50, 0]


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    decoded = decode_bytes(by_pillow(image, "JPEG", exif=exif.tobytes(), quality=100, subsampling=0))
    assert decoded.shape == (8, 4, 3)
    assert decoded[0, 3].mean() > 150  # the white corner has moved to the top right


def test_planar_tiff_is_turned_to_channels_last(picture) -> None:
    image = picture(9, 7, 3)
    stream = io.BytesIO()
    tifffile.imwrite(stream, image.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert (decode_bytes(stream.getvalue()) == image).all()


def test_sixteen_bit_colour_png_is_not_cut_to_eight(picture) -> None:
    image = picture(5, 5, 3, "uint16")
    assert (decode_bytes(encode_png(image)) == image).all()


def bomb() -> bytes:
    """A PNG header that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"not an image", "is not a readable"),
        (encode_png(np.zeros((40, 40, 1), np.uint8))[:-30], "damaged or truncated"),
        (bomb(), "pixels, the limit is"),
    ],
)
def test_bad_bytes(data: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        decode_bytes(data)


def test_every_truncation_of_a_noisy_png_is_refused(picture) -> None:
    data = encode_png(picture(30, 30, 3))
    for cut in range(20, len(data) - 12, 97):
        with pytest.raises(DataError):
            decode_bytes(data[:cut])


def test_bad_files(tmp_path, picture) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        decode(tmp_path / "empty.png")
    with pytest.raises(DataError, match="cannot be opened"):
        decode(tmp_path / "missing.png")
    (tmp_path / "large.png").write_bytes(encode_png(picture(64, 64, 3)))
    with pytest.raises(DataError, match="bytes, the limit is 1,000"):
        decode(tmp_path / "large.png", Limits(max_bytes=1000))
    with pytest.raises(DataError, match="64x64 pixels, the limit is 1,000"):
        decode(tmp_path / "large.png", Limits(max_pixels=1000))


def test_float_and_many_channel_tiffs_are_refused() -> None:
    for array, told in (
        (np.zeros((5, 5), np.float32), "allowed are 8- and 16-bit"),
        (np.zeros((5, 6, 9), np.uint8), "1 to 8 channels"),
    ):
        stream = io.BytesIO()
        tifffile.imwrite(
            stream, array, photometric="minisblack", **({"planarconfig": "contig"} if array.ndim == 3 else {})
        )
        with pytest.raises(DataError, match=told):
            decode_bytes(stream.getvalue())
