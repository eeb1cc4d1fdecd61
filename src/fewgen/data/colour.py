"""Colours of image files in sRGB: by an embedded ICC profile, chunks of a PNG or EXIF data of a JPEG.

A file whose profile describes sRGB, to a rounding of the last bits, is left as it is. A profile that cannot
be used (damaged, or of another kind of image) is ignored with one warning, as browsers do: the colours then
count as sRGB.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

_KEYS = ("icc_profile", "srgb", "gamma", "chromaticity")
"""Under which Pillow keeps what a file says of its colours."""

SAME = 3
"""Largest difference, of 255, between a file's values and those in sRGB at which nothing is converted."""

_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_P3_PRIMARIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
_ADOBE_RGB = {
    "gamma": 256 / 563,
    "exact": True,
    "chromaticity": (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06),
}
_CICP: dict[bytes, dict[str, Any]] = {
    b"\x01\x0d\x00\x01": {"srgb": 0},
    b"\x0c\x0d\x00\x01": {"chromaticity": _P3_PRIMARIES},
}
"""Codes of a chunk cICP: primaries, transfer function, matrix, full range. Source: ITU-T H.273."""

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


class _UnusableError(Exception):
    """What a file says of its colours cannot be used."""


def said_colours(image: Image.Image, data: bytes) -> dict[str, Any]:
    """Return what a file says of its colours, for `to_srgb`; empty if nothing.

    Args:
        image: as Pillow opened it.
        data: the bytes of its file.
    """
    if image.format == "PNG" and (code := _png_chunk(data, b"cICP")) is not None:
        return {"cicp": code}
    said: dict[str, Any] = {key: image.info[key] for key in _KEYS if key in image.info}
    if not said and image.format in ("JPEG", "MPO") and "exif" in image.info:
        with contextlib.suppress(Exception):  # damaged EXIF data say nothing
            # R03 is the sign of cameras for Adobe RGB. Source: CIPA DC-009 (DCF 2.0), "optional file".
            if str(image.getexif().get_ifd(0xA005).get(1)).startswith("R03"):
                return _ADOBE_RGB
    return said


def _png_chunk(data: bytes, name: bytes) -> bytes | None:
    """Return what a chunk of a PNG before its pixels holds; None if there is none."""
    place = 8
    while place + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind == name:
            return data[place + 8 : place + 8 + length]
        if kind == b"IDAT":
            break
        place += 12 + length
    return None


def to_srgb(image: Image.Image, info: dict[str, Any]) -> tuple[Image.Image, bool]:
    """Return an image with its colours in sRGB; the image itself if they are, or if nothing is said of them.

    Args:
        image: of mode L, RGB or CMYK. Grey stays grey, and CMYK with a profile becomes RGB.
        info: as `said_colours`. The chunk cICP of a PNG counts before a profile, that before the chunk sRGB,
            and that before its gamma (gAMA) and primaries (cHRM).

    Returns:
        The image, and whether what the file says of its colours could be used.
    """
    try:
        return _converted(image, info), True
    except _UnusableError:
        return image, False


def unusable_profiles(names: Sequence[str]) -> None:
    """Warn of the files whose profile was ignored, if there are any."""
    if names:
        files = "1 image has" if len(names) == 1 else f"{len(names)} images have"
        warnings.warn(
            f'{files} a colour profile that cannot be used, such as "{names[0]}": the colours are taken as '
            "sRGB.",
            UserWarning,
            stacklevel=2,
        )


def _converted(image: Image.Image, info: dict[str, Any]) -> Image.Image:
    if "cicp" in info:
        if info["cicp"] not in _CICP:
            raise _UnusableError("its colours are neither sRGB nor Display P3")
        info = _CICP[info["cicp"]]
    if "icc_profile" in info:
        profile = info["icc_profile"]
        if not profile:
            raise _UnusableError("its parts are damaged")
        transform = _transform(bytes(profile), image.mode)
        if transform is None:
            return image
        made = transform.apply(image)
        return made.convert("L") if image.mode == "L" else made
    if image.mode == "CMYK" or "srgb" in info:
        return image
    gamma, primaries = info.get("gamma"), info.get("chromaticity")
    # A file says 1/2.2 where it means sRGB; libpng takes what is within 5 % for the same.
    least = 0 if "exact" in info else 0.05
    bent = isinstance(gamma, float) and gamma > 0 and abs(gamma * 2.2 - 1) >= least
    wide = image.mode == "RGB" and primaries is not None and _differ(tuple(primaries))
    if not (bent or wide):
        return image
    stored = np.arange(256) / 255
    light = stored ** (1 / gamma) if bent and gamma else _linear(stored)
    if not wide or primaries is None:
        return image.point(list(_encoded(light)) * len(image.getbands()))
    pixels, matrix = np.array(image), _matrix(tuple(primaries)).T
    for row in pixels:  # bounds the memory of the numbers
        row[:] = _encoded(light[row] @ matrix)
    return Image.fromarray(pixels)


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """Return what converts images with a profile to sRGB; None for those that are sRGB."""
    try:
        from PIL import ImageCms

        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        # A grey image may carry the profile of the colour image that it was.
        taken = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
        if taken is None or (taken != mode and (mode, taken) != ("L", "RGB")):
            raise _UnusableError(f"it describes {space}")
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), taken, "RGB", intent, flags
        )
        found = _Transform(transform, taken)
        if taken == "CMYK":
            return found
        steps = np.linspace(0, 255, 256 if mode == "L" else 17).round().astype(np.uint8)
        if mode == "L":
            probe = Image.fromarray(steps[None])
        else:
            probe = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(17, -1, 3))
        made = np.asarray(found.apply(probe), np.int16)
        return None if abs(made - np.asarray(probe.convert("RGB"), np.int16)).max() <= SAME else found
    except _UnusableError:
        raise
    except Exception as error:  # LittleCMS and Pillow raise many kinds on damaged profiles
        raise _UnusableError(str(error)) from error


class _Transform:
    def __init__(self, transform: Any, mode: str) -> None:
        self.transform, self.mode = transform, mode

    def apply(self, image: Image.Image) -> Image.Image:
        made: Image.Image = self.transform.apply(image.convert(self.mode))
        return made


def _linear(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return light from sRGB values in [0, 1]. Source: IEC 61966-2-1:1999."""
    bent: np.ndarray[Any, Any] = np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )
    return bent


def _encoded(light: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return sRGB values, uint8, from light; the inverse of `_linear`."""
    light = np.clip(light, 0, 1)
    values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(values * 255).astype(np.uint8)


def _differ(primaries: tuple[float, ...]) -> bool:
    """Tell whether primaries of a PNG are usable and others than those of sRGB."""
    if len(primaries) != 8 or max(abs(a - b) for a, b in zip(primaries, _SRGB_PRIMARIES, strict=True)) < 0.01:
        return False
    if min(primaries) < 0 or min(primaries[1::2]) <= 0:
        raise _UnusableError("its primaries are no colours")
    try:
        _matrix(primaries)
    except np.linalg.LinAlgError:
        raise _UnusableError("its primaries lie on one line") from None
    return True


@functools.lru_cache(maxsize=64)
def _matrix(primaries: tuple[float, ...]) -> np.ndarray[Any, Any]:
    """Return the matrix (3, 3) from light of these primaries to light of sRGB; white stays white.

    Source: the PNG specification, "cHRM"; K. Lam, "Metamerism and colour constancy", 1985 (Bradford).
    """
    (to_xyz, white), (from_srgb, srgb_white) = _to_xyz(primaries), _to_xyz(_SRGB_PRIMARIES)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ srgb_white / (_BRADFORD @ white)) @ _BRADFORD
    matrix: np.ndarray[Any, Any] = np.linalg.inv(from_srgb) @ adapted @ to_xyz
    return matrix


def _to_xyz(primaries: tuple[float, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the matrix from light to XYZ, and white in XYZ, of x and y of white, red, green and blue."""
    xy = np.array(primaries).reshape(4, 2)
    white, red, green, blue = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in xy)
    corners = np.stack((red, green, blue), 1)
    return corners * np.linalg.solve(corners, white), white
