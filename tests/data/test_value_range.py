"""Values that use a part of their type: never darkened in silence, one map for a whole set."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fewgen.cli.main import main
from fewgen.data import load_images
from fewgen.data.foreign import load_foreign
from fewgen.data.registry import Reading
from fewgen.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
CAMERA = RNG.integers(0, 4096, (4, 8, 8)).astype(np.uint16)
CAMERA[0, 0, :2] = 0, 4095
CAMERA[1:] //= 2  # darker than the first
MASKS = RNG.integers(0, 2, (4, 8, 8)).astype(np.uint8)


def folder(path: Path, images: np.ndarray, suffix: str = "png") -> Path:
    for i, image in enumerate(images):
        (path / f"class {i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"class {i % 2}" / f"{i}.{suffix}")
    return path


def ordered(images: np.ndarray) -> np.ndarray:
    """The images in the order of a folder: class by class."""
    return images[[0, 2, 1, 3]].astype(float)


def array(path: Path, images: np.ndarray) -> Path:
    np.savez(path, images=images, labels=[0, 0, 1, 1])
    return path


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_camera_data_are_refused_until_the_range_is_known(tmp_path: Path, kind: str) -> None:
    data = folder(tmp_path, CAMERA, kind)
    with pytest.raises(DataError) as caught:
        load_images(data, convert=True)
    assert "from 0 to 4095 of 65535" in str(caught.value)
    assert "--value-range 0 4095" in str(caught.value)
    assert "--value-range 0 65535" in str(caught.value)
    got = load_images(data, value_range=(0, 4095)).images[:, 0].numpy()
    assert np.abs(got - ordered(CAMERA) * 255 / 4095).max() <= 0.5
    assert (load_images(data, value_range=(0, 65535)).images <= 16).all(), "dark, as was asked for"


def test_16_bits_that_are_used_are_converted_as_before(tmp_path: Path) -> None:
    data = folder(tmp_path, CAMERA * 16)
    got = load_images(data, convert=True).images[:, 0].numpy()
    assert np.array_equal(got, (ordered(CAMERA * 16) + 128) // 257)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64, bool])
def test_arrays_of_any_type_take_a_range(tmp_path: Path, dtype: type) -> None:
    path = array(tmp_path / "x.npz", MASKS.astype(dtype))
    assert np.array_equal(load_images(path, value_range=[0, 1]).images[:, 0].numpy(), MASKS * 255)
    foreign = load_foreign(path, Reading(value_range=(0, 1)), labels_required=False)
    assert np.array_equal(foreign.images[:, 0].numpy(), MASKS * 255)
    if dtype is not np.uint8:
        with pytest.raises(DataError, match="from 0 to 1: --value-range 0 1"):
            load_images(path)


@pytest.mark.parametrize("place", ["x.npz", "folder", "idx"])
def test_masks_stay_as_they_are_with_a_warning(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    if place == "x.npz":
        array(path, MASKS)
    elif place == "folder":
        folder(path, MASKS)
    else:
        path.mkdir()
        (path / "train-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03\0\0\0\4\0\0\0\x08\0\0\0\x08" + MASKS.tobytes()
        )
        (path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\4\0\0\1\1")
    expected = ordered(MASKS) if place == "folder" else MASKS
    with pytest.warns(UserWarning, match="from 0 to 1 of 255.*--value-range 0 1 .*--value-range 0 255 keeps"):
        assert np.array_equal(load_images(path).images[:, 0].numpy(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load_images(path, value_range=(0, 1)).images[:, 0].numpy(), expected * 255)
        assert np.array_equal(load_images(path, value_range=(0, 255)).images[:, 0].numpy(), expected)


def test_floats_of_a_folder_and_the_order_of_brightness(tmp_path: Path) -> None:
    images = np.stack([np.full((8, 8), value, np.float32) for value in (-2.0, 0.5, 1.0, 7.0)])
    data = folder(tmp_path, images, "tif")
    with pytest.raises(DataError, match="floating-point.*--value-range"):
        load_images(data)
    with pytest.warns(UserWarning, match="reach from -2 to 7: what lies outside of --value-range 0 2 is cut"):
        got = load_images(data, value_range=(0, 2)).images[:, 0, 0, 0].tolist()
    assert got == [0, 128, 64, 255]


def test_a_usual_set_and_one_of_one_value_are_not_noted(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(folder(tmp_path / "usual", RNG.integers(0, 256, (4, 8, 8), dtype=np.uint8)))
        load_images(folder(tmp_path / "black", np.zeros((4, 8, 8), np.uint8)))
        load_images("digits")


def test_values_of_two_kinds_have_no_common_range(tmp_path: Path) -> None:
    data = folder(tmp_path, CAMERA)
    Image.fromarray(MASKS[0]).save(tmp_path / "class 0" / "mask.png")
    with pytest.raises(DataError, match="mixed values: 4 of 16-bit .* 1 of 8-bit"):
        load_images(data, value_range=(0, 4095))


COLOUR = RNG.integers(0, 4096, (4, 8, 8, 4)).astype(np.uint16)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write: RGB, RGBA, or grey with transparency."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    kind = {2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_tiff(order: str, compression: str | None = None) -> Callable[[np.ndarray], bytes]:
    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, photometric="rgb", byteorder=order, compression=compression)
        return buffer.getvalue()

    return encode


@pytest.mark.parametrize(
    "encode", [deep_png, deep_tiff("<"), deep_tiff(">"), deep_tiff("<", "zlib"), deep_tiff(">", "zlib")]
)
def test_colours_of_16_bits_take_a_range_as_grey_does(
    tmp_path: Path, encode: Callable[[np.ndarray], bytes]
) -> None:
    (tmp_path / "a").mkdir()
    for i, image in enumerate(COLOUR[..., :3]):
        (tmp_path / "a" / f"{i}.img").write_bytes(encode(image))
    with pytest.raises(DataError, match="16 bits per channel.*--value-range"):
        load_images(tmp_path)
    low, high = COLOUR[..., :3].min(), COLOUR[..., :3].max()
    with pytest.raises(DataError, match=f"from {low} to {high} of 65535.*set --value-range {low} {high}"):
        load_images(tmp_path, convert=True)
    got = load_images(tmp_path, value_range=(0, 4095)).images.permute(0, 2, 3, 1).numpy()
    assert np.abs(got - COLOUR[..., :3] * (255 / 4095)).max() <= 0.5
    (tmp_path / "a" / "0.img").write_bytes(encode(COLOUR[0, ..., :3] * 16))
    with pytest.warns(UserWarning, match="what lies outside of --value-range 0 4095 is cut"):
        load_images(tmp_path, value_range=(0, 4095))


def test_transparency_of_16_bits_is_no_colour(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    solid = COLOUR[0].copy()
    solid[..., 3] = 65535
    (tmp_path / "a" / "x.png").write_bytes(deep_png(solid))
    got = load_images(tmp_path, value_range=(0, 4095)).images[0].permute(1, 2, 0).numpy()
    assert np.abs(got - solid[..., :3] * (255 / 4095)).max() <= 0.5
    solid[:4, :, 3] = 0
    (tmp_path / "a" / "x.png").write_bytes(deep_png(solid))
    with pytest.raises(DataError, match="is transparent"):
        load_images(tmp_path, value_range=(0, 4095))
    white = (
        load_images(tmp_path, value_range=(0, 4095), background="white").images[0].permute(1, 2, 0).numpy()
    )
    assert (white[:4] == 255).all()
    assert np.array_equal(white[4:], got[4:])


def test_16_bits_in_a_form_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(deep_png(COLOUR[0, ..., :2]))
    with pytest.raises(DataError, match="only the upper 8 can be read; save it as 16-bit grey or RGB"):
        load_images(tmp_path, value_range=(0, 4095))


@pytest.mark.parametrize(
    "wrong", [5, (1,), (1, 1), (2, 1), (0, float("nan")), (0, float("inf")), "01", (True, 3)]
)
def test_a_range_is_two_rising_numbers(wrong: object) -> None:
    with pytest.raises(ConfigError, match="value_range must be two numbers"):
        load_images("digits", value_range=wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    images = MASKS.astype(np.float32)
    images[0, 0, 0] = value
    with pytest.raises(DataError, match="NaN or infinite"):
        load_images(array(tmp_path / "x.npz", images), value_range=(0, 1))
    with pytest.raises(DataError, match="NaN or infinite"):
        load_images(folder(tmp_path / "f", images, "tif"), value_range=(0, 1))


def test_the_flag_takes_two_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(array(tmp_path / "x.npz", MASKS.astype(np.float32) - 0.5))
    words = ["train", "cada_vqvae", "--data", data, "--out", str(tmp_path / "run")]
    assert main([*words, "--value-range", "-0.5", "0.5", "--print_config"]) == 0
    assert "value_range: [-0.5, 0.5]" in capsys.readouterr().out
    assert main([*words, "--value-range", "1", "--print_config"]) == 2
    assert "--value-range needs a value" in capsys.readouterr().err
    assert main([*words, "--value-range", "1", "0"]) == 2
    assert "value_range must be two numbers" in capsys.readouterr().err
    assert main(words) == 2
    assert "--value-range -0.5 0.5" in capsys.readouterr().err
