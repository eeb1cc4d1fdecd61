import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from fewgen.data import ImageSet, load_images, save_images
from fewgen.data.folder import class_to_folder, folder_to_class, load_folder
from fewgen.data.transforms import Form
from fewgen.errors import ConfigError, DataError, OutputError


def picture(seed: int = 0, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image.convert(mode)


def make(root: Path, files: dict[str, Image.Image | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
    return root


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_16_bit_rgb() -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads as 8-bit RGB without a word."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(72)) for _ in range(12))
    head = struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff_16_bit_rgb() -> bytes:
    """The same as TIFF, which Pillow cannot write."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((12, 12, 3), 999, np.uint16), photometric="rgb")
    return buffer.getvalue()


def half_transparent() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 128))
    return image


GOOD = {"cat/1.png": picture(1), "dog/1.png": picture(2)}


def problem(root: Path, min_classes: int = 1, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load_folder(root, Form(**options), min_classes=min_classes)
    return str(caught.value)


def test_images_labels_and_names_in_order(tmp_path: Path) -> None:
    make(tmp_path, {"dog/b.png": picture(3), "dog/a.png": picture(2), "cat/x.png": picture(1)})
    data = load_images(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 1]
    assert [origin.file for origin in data.origins or ()] == ["cat/x.png", "dog/a.png", "dog/b.png"]
    for i, seed in enumerate((1, 2, 3)):
        assert np.array_equal(data.images[i].permute(1, 2, 0).numpy(), np.asarray(picture(seed)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "GIF"])
def test_formats_are_known_by_content(tmp_path: Path, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    make(tmp_path, {"a/1.dat": encoded(picture(), kind, **options), "b/1.png": picture()})
    data = load_images(tmp_path, channels=3)
    exact = np.array_equal(data.images[0].permute(1, 2, 0).numpy(), np.asarray(picture()))
    assert exact == (kind != "JPEG")


UNUSABLE = {
    "truncated.png": (encoded(picture(), "PNG")[:-30], "damaged or truncated"),
    "no-end.png": (encoded(picture(), "PNG")[:-12], "damaged or truncated"),
    "truncated.jpg": (encoded(picture(size=(64, 64)), "JPEG")[:-200], "damaged or truncated"),
    "flipped.png": (encoded(picture(), "PNG").replace(b"IDAT", b"IDAT\x00", 1), "damaged or truncated"),
    "notes.txt": (b"buy milk", "not an image"),
    "empty.png": (b"", "is empty"),
    "photo.heic": (b"\0\0\0\x18ftypheic", "is a HEIC photo; save it as PNG or JPEG"),
    "animated.gif": (
        encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)]),
        "animated or has several pages (2)",
    ),
    "animated.webp": (encoded(picture(1), "WEBP", save_all=True, append_images=[picture(2)]), "animated"),
    "animated.png": (encoded(picture(1), "PNG", save_all=True, append_images=[picture(2)]), "animated"),
    "pages.tif": (encoded(picture(1), "TIFF", save_all=True, append_images=[picture(2)]), "several pages"),
    "deep-grey.png": (encoded(Image.fromarray(np.full((12, 12), 999, np.uint16)), "PNG"), "16 bits"),
    "deep-colour.png": (png_16_bit_rgb(), "16 bits"),
    "deep.tif": (encoded(Image.fromarray(np.full((12, 12), 999, np.uint16)), "TIFF"), "16 bits"),
    "deep-colour.tif": (tiff_16_bit_rgb(), "16 bits"),
    "float.tif": (encoded(Image.fromarray(np.zeros((12, 12), np.float32)), "TIFF"), "floating-point"),
    "print.jpg": (encoded(picture(mode="CMYK"), "JPEG"), "colour space CMYK"),
    "lab.tif": (encoded(Image.new("LAB", (12, 12)), "TIFF"), "colour space LAB"),
    "see-through.png": (encoded(half_transparent(), "PNG"), "is transparent"),
    "see-through.webp": (encoded(half_transparent(), "WEBP"), "is transparent"),
    "see-through.gif": (encoded(Image.new("P", (12, 12)), "GIF", transparency=0), "is transparent"),
    "key-colour.png": (encoded(Image.new("RGB", (12, 12)), "PNG", transparency=(0, 0, 0)), "is transparent"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_is_named_with_its_reason(tmp_path: Path, name: str) -> None:
    content, reason = UNUSABLE[name]
    make(tmp_path, GOOD)
    load_folder(tmp_path)
    make(tmp_path, {f"cat/{name}": content})
    message = problem(tmp_path)
    assert f'"cat/{name}"' in message.replace(os.sep, "/")
    assert reason in message
    assert message.count("cat/") == 1, "only the bad file is named"


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    make(tmp_path, GOOD)
    make(
        tmp_path,
        {f"cat/{name}": content for name, (content, _) in UNUSABLE.items() if not name.startswith("see")},
    )
    make(tmp_path, {"README.md": b"hello", "cat/more/1.png": picture(), "Dog/1.png": picture(size=(9, 9))})
    (tmp_path / "fox").mkdir()
    (tmp_path / "outside.png").symlink_to("/")
    message = problem(tmp_path)
    for part in (
        '"README.md"',
        "folder inside a class",
        'class folder "fox" has no images',
        '"Dog" and "dog" differ only by case',
        "leads out",
    ):
        assert part in message, part
    assert "problems" in message


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    make(tmp_path, {"a/1.png": picture(), "a/2.png": picture(), "b/1.png": picture(size=(20, 10))})
    message = problem(tmp_path)
    assert "2 of 12x12" in message
    assert '1 of 20x10 (such as "b' in message
    assert "set size to one number for all (such as --size 28)" in message
    for fit in ("crop", "pad", "stretch"):
        assert load_images(tmp_path, size=8, fit=fit).images.shape == (3, 3, 8, 8)


def test_grey_and_colour(tmp_path: Path) -> None:
    grey = make(tmp_path / "grey", {"a/1.png": picture(mode="L"), "b/1.png": picture(mode="1")})
    assert load_images(grey).channels == 1
    assert load_images(grey, channels=3).channels == 3
    mixed = make(tmp_path / "mixed", {"a/1.png": picture(mode="L"), "b/1.png": picture()})
    assert "mixed kinds: 1 of grey" in problem(mixed)
    assert load_images(mixed, channels=1).channels == 1
    assert load_images(mixed, channels=3).channels == 3


def test_palette_images_follow_the_colours_that_they_use(tmp_path: Path) -> None:
    colour = picture().quantize(8)
    grey = picture(mode="L").quantize(8)
    data = load_images(make(tmp_path / "c", {"a/1.png": colour, "b/1.png": colour}))
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), np.asarray(colour.convert("RGB")))
    data = load_images(make(tmp_path / "g", {"a/1.png": grey, "b/1.gif": grey}))
    assert data.channels == 1
    assert np.array_equal(data.images[0, 0].numpy(), np.asarray(grey.convert("L")))


def test_an_opaque_alpha_channel_is_not_transparency(tmp_path: Path) -> None:
    data = load_images(make(tmp_path, {"a/1.png": picture().convert("RGBA"), "b/1.png": picture()}))
    assert torch.equal(data.images[0], data.images[1])


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
def test_transparency_on_a_chosen_background(tmp_path: Path, background: str, value: int) -> None:
    clear = Image.new("RGBA", (12, 12), (200, 10, 10, 0))
    data = load_images(make(tmp_path, {"a/1.png": clear, "b/1.png": picture()}), background=background)
    assert (data.images[0] == value).all()
    clear_grey = Image.new("LA", (12, 12), (90, 0))
    data = load_images(
        make(tmp_path / "g", {"a/1.png": clear_grey, "b/1.png": picture(mode="L")}), background=background
    )
    assert data.channels == 1
    assert (data.images[0] == value).all()


def test_conversion_on_request(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 10, 65535]], np.uint16).repeat(3, 0)
    make(
        tmp_path,
        {"a/1.png": encoded(Image.fromarray(values), "PNG"), "b/1.png": picture(size=(3, 3), mode="L")},
    )
    assert load_images(tmp_path, convert=True).images[0, 0, 0].tolist() == [0, 10, 255]
    cmyk = make(
        tmp_path / "cmyk", {"a/1.jpg": encoded(picture(mode="CMYK"), "JPEG"), "b/1.png": png_16_bit_rgb()}
    )
    assert load_images(cmyk, convert=True).channels == 3


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    image = picture(size=(20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to the right
    plain = encoded(image, "PNG", exif=exif)
    data = load_images(make(tmp_path, {"a/1.png": plain, "b/1.png": picture(size=(10, 20))}))
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), np.rot90(np.asarray(image), -1))


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    make(
        tmp_path,
        {
            **GOOD,
            ".DS_Store": b"x",
            "cat/.DS_Store": b"x",
            "cat/Thumbs.db": b"x",
            ".git/a": b"x",
            "cat/._1.png": b"x",
        },
    )
    assert len(load_images(tmp_path)) == 2


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    secret = make(tmp_path / "secret", {"s/1.png": picture(9)})
    root = make(tmp_path / "root", GOOD)
    (root / "cat" / "same.png").symlink_to(root / "dog" / "1.png")
    assert len(load_images(root)) == 3, "a link inside of the folder is fine"
    (root / "cat" / "link.png").symlink_to(secret / "s" / "1.png")
    (root / "stolen").symlink_to(secret / "s")
    message = problem(root)
    assert "link.png" in message
    assert '"stolen"' in message
    assert message.count("leads out of the folder") == 2


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def bomb(side: int) -> bytes:
        data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)

    make(tmp_path, {**GOOD, "cat/big.png": bomb(12_000), "cat/huge.png": bomb(60_000)})
    message = problem(tmp_path)
    assert "12000x12000 pixels" in message
    assert 'huge.png" has far more than' in message


def test_one_class_and_no_class(tmp_path: Path) -> None:
    make(tmp_path, {"cat/1.png": picture()})
    assert load_images(tmp_path).n_classes == 1
    assert "2 classes are needed, but there is only: cat" in problem(tmp_path, min_classes=2)
    assert "no class folder" in problem(make(tmp_path / "flat", {"1.png": picture()}))
    with pytest.raises(DataError, match="neither a data set"):
        load_images(tmp_path / "missing")


def test_parts_of_a_folder(tmp_path: Path) -> None:
    make(
        tmp_path,
        {
            "train/a/1.png": picture(1),
            "train/b/1.png": picture(2),
            "val/a/1.png": picture(3),
            "val/b/1.png": picture(4),
        },
    )
    assert load_images(tmp_path).class_names == ("a", "b")
    assert np.array_equal(
        load_images(tmp_path, split="test").images[0, 0].numpy(), np.asarray(picture(3))[..., 0]
    )
    with pytest.raises(DataError, match="no test part"):
        load_images(tmp_path / "train", split="test")
    buses = make(tmp_path / "vehicles", {"train/1.png": picture(1), "bus/1.png": picture(2)})
    assert load_images(buses).class_names == ("bus", "train"), "a class may be called train"


@pytest.mark.parametrize(
    "name", ["T-shirt/top", ".hidden", "a:b*c", "50%", "dot.", "ü ñ", "100% wool", "a%2Fb"]
)
def test_class_names_survive_as_folder_names(name: str) -> None:
    folder = class_to_folder(name)
    assert folder_to_class(folder) == name
    assert "/" not in folder
    assert not folder.startswith(".")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("place", ["out.npz", "out"])
def test_saved_images_come_back(tmp_path: Path, channels: int, place: str) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, channels, 7, 9), generator=rng, dtype=torch.uint8)
    data = ImageSet(images, torch.tensor([0, 1, 0, 1, 0, 1]), ("Ankle boot", "T-shirt/top"))
    save_images(data, tmp_path / place, seeds=torch.arange(6))
    again = load_images(tmp_path / place)
    assert again.class_names == data.class_names
    order = torch.argsort(data.labels, stable=True) if place == "out" else torch.arange(6)
    assert torch.equal(again.images, images[order])
    assert torch.equal(again.labels, data.labels[order])
    with pytest.raises(OutputError):
        save_images(data, tmp_path / place)
    assert torch.equal(load_images(tmp_path / place).images, again.images)


@pytest.mark.parametrize(
    "options",
    [
        {"fit": "croop"},
        {"size": 1},
        {"size": 28.5},
        {"channels": 2},
        {"background": "pink"},
        {"split": "dev"},
    ],
)
def test_meaningless_options_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    make(tmp_path, GOOD)
    with pytest.raises(ConfigError):
        load_images(tmp_path, **options)


@pytest.mark.parametrize("name", ["big\ncat", "big%0Acat", "tab\tcat"])
def test_control_characters_in_class_names_are_a_problem_of_the_folder(tmp_path, name):
    for folder in (name, "dog"):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / folder / "a.png")
    with pytest.raises(DataError, match="control characters") as error:
        load_images(tmp_path)
    assert repr(name) in str(error.value)


def test_advice_serves_the_command_line_and_python(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "cat" / "glass.png")
    Image.new("CMYK", (4, 4)).save(tmp_path / "cat" / "print.jpg")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(DataError) as error:
        load_images(tmp_path)
    assert str(error.value).count("(--convert)") == 2
    assert "(--background white)" in str(error.value)
    assert "pass " not in str(error.value)
    assert "True" not in str(error.value)
