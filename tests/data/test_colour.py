"""Colour profiles of image files: converted to sRGB, or ignored by a rule that is said; sRGB stays bit for bit."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fewgen.data import load_images

# Published matrices from light to XYZ under D65 (IEC 61966-2-1; SMPTE EG 432-1; Adobe RGB (1998), 2005).
TO_XYZ = {
    "srgb": [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]],
    "p3": [[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]],
    "adobe": [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]],
}
D65_TO_D50 = [[1.04788, 0.02292, -0.05022], [0.02959, 0.99048, -0.01707], [-0.00925, 0.01508, 0.75168]]
PRIMARIES = {"p3": (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)}


def srgb_light(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def srgb_value(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def from_lab(lightness: float, a: float, b: float) -> np.ndarray:
    f = np.array([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200])
    under_d50 = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    return srgb_value(np.linalg.inv(TO_XYZ["srgb"]) @ np.linalg.inv(D65_TO_D50) @ under_d50)


def expected(pixels: np.ndarray, space: str) -> np.ndarray:
    light = (pixels / 255) ** (563 / 256) if space == "adobe" else srgb_light(pixels / 255)
    return srgb_value(light @ np.array(TO_XYZ[space]).T @ np.linalg.inv(TO_XYZ["srgb"]).T)


def icc(space: str, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 with these tags; `space` is "RGB ", "GRAY" or "CMYK"."""
    pcs = b"Lab " if space == "CMYK" else b"XYZ "
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), **tags}
    tags[b"wtpt"] = xyz(0.9642, 1.0, 0.8249)
    table, data, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", place + len(data), len(body))
        data += body
    size = place + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, space.encode(), pcs)
    header += (
        struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
        + b"acsp"
        + bytes(28)
        + struct.pack(">3i", 63190, 65536, 54061)
    )
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def curve(values: np.ndarray | float) -> bytes:
    if isinstance(values, float):
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(values * 256))
    return (
        b"curv" + bytes(4) + struct.pack(">I", len(values)) + np.rint(values * 65535).astype(">u2").tobytes()
    )


def rgb_profile(space: str) -> bytes:
    columns = (np.array(D65_TO_D50) @ np.array(TO_XYZ[space])).T
    tone = curve(563 / 256) if space == "adobe" else curve(srgb_light(np.linspace(0, 1, 1024)))
    tags = {c + b"XYZ": xyz(*column) for c, column in zip((b"r", b"g", b"b"), columns, strict=True)}
    return icc("RGB ", b"mntr", tags | {c + b"TRC": tone for c in (b"r", b"g", b"b")})


def cmyk_profile() -> bytes:
    """Paper is white; black ink is black and others have a lightness of their own."""
    identity = np.arange(256, dtype=np.uint8).tobytes()
    lab = bytearray()
    for corner in range(16):  # cyan varies slowest, black fastest
        c, m, y, k = (corner >> i & 1 for i in (3, 2, 1, 0))
        light = (1 - 0.45 * c) * (1 - 0.5 * m) * (1 - 0.1 * y) * (1 - k)
        tint = 1 - k
        a, b = tint * (70 * m * (1 - c) - 35 * c), tint * (90 * y - 50 * c * (1 - y))
        lab += bytes((round(light * 255), round(128 + a), round(128 + b)))
    matrix = struct.pack(">9i", *(65536 * int(i in (0, 4, 8)) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + identity * 4 + bytes(lab) + identity * 3
    return icc("CMYK", b"prtr", {b"A2B0": lut})


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(40, 200, (12, 12, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def read(
    tmp_path: Path, image: Image.Image, kind: str = "PNG", convert: bool = False, **options: object
) -> np.ndarray:
    (tmp_path / "a").mkdir(exist_ok=True)
    image.save(tmp_path / "a" / "x", kind, **options)
    pixels = load_images(tmp_path, convert=convert).images[0].permute(1, 2, 0).numpy()
    return pixels.astype(int)


@pytest.mark.parametrize("space", ["p3", "adobe"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_profile_is_converted(tmp_path: Path, space: str, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(PIXELS)
    got = read(tmp_path, image, kind, icc_profile=rgb_profile(space), **options)
    assert np.abs(got - expected(PIXELS, space)).max() <= 2
    assert np.abs(got - PIXELS).max() > 10, "the profile matters"
    see_through = image.convert("RGBA")
    assert np.array_equal(read(tmp_path, see_through, kind, icc_profile=rgb_profile(space), **options), got)


@pytest.mark.parametrize("profile", [SRGB, rgb_profile("srgb")], ids=["LittleCMS", "another maker"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_srgb_stays_bit_for_bit(tmp_path: Path, profile: bytes, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    plain = read(tmp_path, image)
    assert np.array_equal(read(tmp_path, image, icc_profile=profile), plain)


def test_a_grey_profile_keeps_grey(tmp_path: Path) -> None:
    profile = icc("GRAY", b"mntr", {b"kTRC": curve(1.0)})
    got = read(tmp_path, Image.fromarray(PIXELS[..., 0]), icc_profile=profile)
    assert got.shape[2] == 1
    assert np.abs(got[..., 0] - srgb_value(PIXELS[..., 0] / 255)).max() <= 1


def test_print_colours_follow_their_profile(tmp_path: Path) -> None:
    inks = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8).repeat(3, 0)
    image = Image.fromarray(inks, "CMYK")
    got = read(tmp_path, image, "TIFF", convert=True, icc_profile=cmyk_profile())
    assert np.abs(got[0, 0] - 255).max() <= 3
    assert got[0, 1].max() <= 3
    assert np.abs(got[0, 2] - from_lab(140 / 2.55, 93 - 128, 78 - 128)).max() <= 4
    naive = read(tmp_path, image, "TIFF", convert=True)
    assert np.abs(naive[0, 2] - got[0, 2]).max() > 30


def png_with(pixels: np.ndarray, chunks: dict[bytes, bytes]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    extra = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )
    return data[:33] + extra + data[33:]


def read_bytes(tmp_path: Path, data: bytes) -> np.ndarray:
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "x.png").write_bytes(data)
    return load_images(tmp_path).images[0].permute(1, 2, 0).numpy().astype(int)


GAMMA = {"usual": struct.pack(">I", 45455), "linear": struct.pack(">I", 100000)}


def primaries_chunk(values: tuple[float, ...]) -> bytes:
    return struct.pack(">8I", *(round(v * 100000) for v in values))


def test_gamma_and_primaries_of_a_png(tmp_path: Path) -> None:
    usual = {
        b"gAMA": GAMMA["usual"],
        b"cHRM": primaries_chunk((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)),
    }
    assert np.array_equal(read_bytes(tmp_path, png_with(PIXELS, usual)), PIXELS)
    got = read_bytes(tmp_path, png_with(PIXELS, {b"gAMA": GAMMA["linear"]}))
    assert np.abs(got - srgb_value(PIXELS / 255)).max() <= 0.51
    grey = read_bytes(tmp_path, png_with(PIXELS[..., 0], {b"gAMA": GAMMA["linear"]}))
    assert np.array_equal(grey[..., 0], got[..., 0])
    wide = {b"gAMA": GAMMA["usual"], b"cHRM": primaries_chunk(PRIMARIES["p3"])}
    assert np.abs(read_bytes(tmp_path, png_with(PIXELS, wide)) - expected(PIXELS, "p3")).max() <= 1
    said = {b"gAMA": GAMMA["linear"], b"sRGB": b"\0"}
    assert np.array_equal(read_bytes(tmp_path, png_with(PIXELS, said)), PIXELS), "sRGB counts first"


def test_the_code_of_a_png_counts_before_everything_else(tmp_path: Path) -> None:
    linear = {b"gAMA": GAMMA["linear"]}
    assert np.array_equal(read_bytes(tmp_path, png_with(PIXELS, linear | {b"cICP": b"\1\x0d\0\1"})), PIXELS)
    got = read_bytes(tmp_path, png_with(PIXELS, linear | {b"cICP": b"\x0c\x0d\0\1"}))
    assert np.abs(got - expected(PIXELS, "p3")).max() <= 1
    grey = png_with(PIXELS[..., 0], {b"cICP": b"\x0c\x0d\0\1"})
    assert np.array_equal(read_bytes(tmp_path, grey)[..., 0], PIXELS[..., 0])
    for other in (b"\x09\x10\0\1", b"\x01\x0d\0\0", b"\x0c\x0d", b""):  # PQ, narrow range, cut
        with pytest.warns(UserWarning, match="cannot be used"):
            assert np.array_equal(read_bytes(tmp_path, png_with(PIXELS, {b"cICP": other})), PIXELS)


def test_cameras_say_adobe_rgb_in_exif_data(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    stored = read(tmp_path, Image.fromarray(pixels), "JPEG", quality=100, subsampling=0)
    image = Image.fromarray(pixels)
    got = read(tmp_path, image, "JPEG", quality=100, subsampling=0, exif=exif.tobytes())
    assert np.abs(got - expected(stored, "adobe")).max() <= 1
    assert np.abs(got - stored).max() > 10
    with_profile = {"exif": exif.tobytes(), "icc_profile": SRGB}
    assert np.array_equal(read(tmp_path, image, "JPEG", quality=100, subsampling=0, **with_profile), stored)
    usual = exif.tobytes().replace(b"R03", b"R98")
    assert np.array_equal(read(tmp_path, image, "JPEG", quality=100, subsampling=0, exif=usual), stored)
    cut = exif.tobytes()[:-8]
    assert np.array_equal(read(tmp_path, image, "JPEG", quality=100, subsampling=0, exif=cut), stored)


BROKEN = {
    "no profile": b"not a profile",
    "cut": rgb_profile("p3")[:200],
    "header alone": rgb_profile("p3")[:128],
    "of print": cmyk_profile(),
    "wild": RNG.integers(0, 256, 500, dtype=np.uint8).tobytes(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_profile_is_ignored_with_a_warning(tmp_path: Path, name: str) -> None:
    with pytest.warns(UserWarning, match='1 image has a colour profile that cannot be used, such as "a.x"'):
        got = read(tmp_path, Image.fromarray(PIXELS), icc_profile=BROKEN[name])
    assert np.array_equal(got, PIXELS)


@pytest.mark.parametrize(
    "chunks",
    [
        {b"iCCP": b"x\0\0broken"},
        {b"cHRM": primaries_chunk((0.3, 0.0, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06))},
        {b"cHRM": primaries_chunk((0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3))},
    ],
)
def test_broken_chunks_of_a_png_are_ignored_with_a_warning(
    tmp_path: Path, chunks: dict[bytes, bytes]
) -> None:
    with pytest.warns(UserWarning, match="cannot be used"):
        assert np.array_equal(read_bytes(tmp_path, png_with(PIXELS, chunks)), PIXELS)


def test_a_gamma_of_zero_says_nothing(tmp_path: Path) -> None:
    assert np.array_equal(read_bytes(tmp_path, png_with(PIXELS, {b"gAMA": bytes(4)})), PIXELS)
