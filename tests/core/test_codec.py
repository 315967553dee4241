"""Every kind of image file that users have, good and bad."""

from __future__ import annotations

import io
import struct
import weakref
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from visynth.core.codec import Limits, decode, decode_bytes, decode_values, encode_png, encode_tiff
from visynth.core.errors import DataError
from visynth.core.pictures import to_channels
from visynth.data.imageset import ImageSet, Lazy
from visynth.lightning_modules.data import GeneratorData
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractor import Extractor


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


@pytest.mark.injected
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


@pytest.mark.injected
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


@pytest.mark.injected
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


# -- as files are, out there -----------------------------------------------------------------------------------------------


def smooth(height: int = 40, width: int = 30) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8), (0, 0), 2)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "group4", "zstd", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    image = Image.fromarray(smooth())
    image = image.point(lambda v: 255 * (v > 120)).convert("1") if compression == "group4" else image
    found = decode_bytes(by_pillow(image, "TIFF", compression=compression))[:, :, 0]
    assert np.abs(found.astype(int) - np.asarray(image.convert("L"))).max() <= (8 if compression == "jpeg" else 0)


def test_sixteen_bits_stay_so_under_lzw() -> None:
    image = np.random.default_rng(0).integers(0, 65535, (40, 30), dtype=np.uint16)
    done, data = cv2.imencode(".tiff", image, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert done
    assert (decode_bytes(data.tobytes())[:, :, 0] == image).all()


def test_white_is_white_whatever_the_file_calls_zero() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, smooth(), photometric="miniswhite")
    assert (decode_bytes(stream.getvalue())[:, :, 0] == 255 - smooth()).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    jpeg = decode_bytes(by_pillow(Image.fromarray(smooth()), "JPEG", exif=exif, quality=100))[:, :, 0].astype(int)
    png = decode_bytes(by_pillow(Image.fromarray(smooth()), exif=exif))[:, :, 0]
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, smooth(), extratags=[(274, 3, 1, orientation, True)])
    assert (decode_bytes(tiff.getvalue())[:, :, 0] == png).all()
    assert jpeg.shape == png.shape
    assert np.abs(jpeg - png).max() <= 4
    deep = by_pillow(Image.fromarray(smooth().astype(np.uint16) * 257), exif=exif)
    assert deep[24] == 16
    assert (decode_bytes(deep)[:, :, 0] == png.astype(np.uint16) * 257).all()


def test_long_texts_in_a_png_are_passed_over() -> None:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * 3_000_000, zip=True)
    assert (decode_bytes(by_pillow(Image.fromarray(smooth()), pnginfo=info))[:, :, 0] == smooth()).all()


def test_a_stack_of_pages_is_no_image_of_many_channels() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.stack([smooth()] * 3), photometric="minisblack")
    with pytest.raises(DataError, match="is a TIFF with 3 pages; give single images"):
        decode_bytes(stream.getvalue())


def test_our_pixel_limit_rules_and_not_pillows(monkeypatch) -> None:
    data = by_pillow(Image.fromarray(smooth()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_bytes(data).shape == (40, 30, 1)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(DataError, match="has 30x40 pixels, the limit is 1,199"):
        decode_bytes(data, Limits(max_pixels=1199))


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32", "uint8"])
def test_values_of_any_type_are_read_for_masks(dtype: str, tmp_path) -> None:
    values = (smooth() > 120).astype(dtype) if dtype == "bool" else smooth().astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    found = decode_values(tmp_path / "a.tif")[:, :, 0]
    assert (found == (values.astype(np.uint8) * 255 if dtype == "bool" else values)).all()
    image = Image.fromarray((smooth() // 100).astype(np.uint8), mode=None).convert("P")
    image.putpalette([v for k in range(256) for v in (k, 3 * k % 256, 0)])
    image.save(tmp_path / "p.png")
    assert decode_values(tmp_path / "p.png").shape == (40, 30, 1), "indices, not colours"


def test_large_photographs_are_decoded_at_the_size_that_is_needed(tmp_path) -> None:
    photo = cv2.resize(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8), (1600, 1200))
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=95)
    assert decode(tmp_path / "a.jpg").shape == (1200, 1600, 3)
    small = decode(tmp_path / "a.jpg", at_least=(128, 128))
    assert small.shape == (150, 200, 3)
    whole = cv2.resize(decode(tmp_path / "a.jpg"), (200, 150), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - whole).mean() < 2
    Image.fromarray(photo[:600, :800]).save(tmp_path / "b.jpg")
    assert decode(tmp_path / "b.jpg", at_least=(64, 64)).shape == (600, 800, 3), "up to a megapixel images come whole"


def test_images_of_a_training_are_fitted_one_by_one(class_folders, monkeypatch) -> None:
    """At no time are more whole images in memory than there are threads that decode."""
    folder = class_folders({"a": 12, "b": 12}, height=40, width=60, channels=3)
    alive, most = set(), []
    image = ImageSet.image

    def watched(self, item, at_least=None):
        found = image(self, item, at_least)
        alive.add(id(found))
        weakref.finalize(found, alive.discard, id(found))
        most.append(len(alive))
        return found

    monkeypatch.setattr(ImageSet, "image", watched)
    data = GeneratorData(str(folder), size=8)
    data.setup("fit")
    assert len(data.pool.images) == 24
    assert len(most) == 24
    assert max(most) <= 5


def test_features_ask_for_each_picture_once(picture) -> None:
    asked = []
    images = Lazy(lambda seed: asked.append(seed) or picture(32, 32, 1, seed=seed), range(11))
    bank = FeatureBank(Extractor("toy", torch.nn.AvgPool2d(32), 3), (0, 64))
    assert bank.add(images, cache=False).tolist() == list(range(11))
    assert asked == list(range(11))


def test_what_alpha_hides_is_not_trained_on() -> None:
    image = np.zeros((2, 2, 4), np.uint8)
    image[:, :, :3], image[0, 0, 3], image[0, 1, 3] = 200, 255, 128
    assert to_channels(image, 3)[:, :, 0].tolist() == [[200, 100], [0, 0]]
    assert to_channels(image, 4).tolist() == image.tolist()
