"""What the tiny model is pre-trained on: 106 concepts, their words and their masks.

Masks are drawn from the fonts that matplotlib ships, plus a few drawn shapes. No photograph and
no handwriting is involved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MASK_SIZE = 40
"""Side of a mask in pixels."""

_BOX = 26  # longest side of the ink inside a mask, pixels; the rest is room for augmentation
_DRAW = 160  # drawing resolution before the reduction to a mask, pixels

Points = NDArray[np.floating]  # (n, 2), x to the right and y down, any unit


@dataclass(frozen=True)
class Concept:
    """One thing a mask can show."""

    kind: str
    """The words before the name: «digit», «capital letter», ..."""
    name: str
    """The name: «three», «a», «alpha», «plus», «star»."""
    characters: str
    """The characters that draw it, each alone; empty for a drawn shape."""
    weight: float
    """Relative sampling frequency; over all concepts the weights sum to 1."""

    def caption(self, template: str, ink: str = "") -> str:
        """The template's «{}» filled with e.g. «digit three» or «red digit three»."""
        return template.format(f"{ink} {self.kind} {self.name}".strip())


TEMPLATES = (
    "a photo of the {}.",
    "a photo of a {}.",
    "a picture of the {}.",
    "an image of the {}.",
    "a drawing of the {}.",
    "a sketch of the {}.",
    "a blurry photo of the {}.",
    "a small image of the {}.",
    "this is the {}.",
    "the {}",
)
"""Caption templates; «{}» takes kind and name, so «a photo of the digit three.» is among them."""

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Without iota, kappa, nu, omicron and upsilon, which look like Latin letters.
_GREEK = (
    *(("alpha", "α"), ("beta", "β"), ("gamma", "γ"), ("delta", "δ"), ("epsilon", "ε")),
    *(("zeta", "ζ"), ("eta", "η"), ("theta", "θ"), ("lambda", "λ"), ("mu", "μ"), ("xi", "ξ")),
    *(("pi", "π"), ("rho", "ρ"), ("sigma", "σ"), ("tau", "τ"), ("phi", "φ"), ("chi", "χ")),
    *(("psi", "ψ"), ("omega", "ω")),
)
_SYMBOLS = (
    *(("plus", "+"), ("equals", "="), ("less than", "<"), ("greater than", ">")),
    *(("question mark", "?"), ("exclamation mark", "!"), ("ampersand", "&"), ("percent", "%")),
    *(("hash", "#"), ("at sign", "@"), ("dollar", "$"), ("asterisk", "*"), ("slash", "/")),
)
_SHAPES = (
    *("disc", "square", "triangle", "diamond", "star", "heart", "crescent", "arrow", "cross"),
    *("house", "zigzag", "spiral"),
)


def _digit(value: int) -> str:
    """The digit in ASCII and in the five mathematical styles from U+1D7CE, ten codes each."""
    return str(value) + "".join(chr(0x1D7CE + 10 * style + value) for style in range(5))


CONCEPTS: tuple[Concept, ...] = (
    *(Concept("digit", name, _digit(i), 0.40 / 10) for i, name in enumerate(_DIGITS)),
    *(Concept("capital letter", c, c.upper(), 0.16 / 26) for c in _LETTERS),
    *(Concept("small letter", c, c, 0.16 / 26) for c in _LETTERS),
    *(Concept("greek letter", name, char, 0.06 / 19) for name, char in _GREEK),
    *(Concept("symbol", name, char, 0.07 / 13) for name, char in _SYMBOLS),
    *(Concept("shape", name, "", 0.15 / 12) for name in _SHAPES),
)
"""The 106 concepts: 10 digits, 26 + 26 letters, 19 Greek, 13 symbols, 12 drawn shapes."""

# The TeX fonts (cm*) put other glyphs on most codes: only letters and digits can be trusted, and
# cmmi10 has old-style digits.
FONTS: tuple[str, ...] = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSansMono-Oblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmb10", "cmmi10", "cmr10", "cmti10", "cmtt10"),
)
"""Font files (without «.ttf») that training masks are drawn from."""

HELD_OUT_FONTS: tuple[str, ...] = (
    "DejaVuSans-Oblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralItalic",
    "cmss10",
)
"""Font files kept out of training."""


def draw_masks(fonts: tuple[str, ...], *, shapes: bool = True) -> tuple[Tensor, Tensor]:
    """Draw every concept in every font that has it, and the drawn shapes once.

    Returns:
        masks, (n, 40, 40) float32 in [0, 1], 1 is ink; and the index into `CONCEPTS` of each,
        (n,) int64, ascending.
    """
    faces = [_Face(name) for name in fonts]
    outlines = _outlines()
    masks: list[NDArray[np.float32]] = []
    labels: list[int] = []
    for label, concept in enumerate(CONCEPTS):
        drawn: list[Image.Image] = []
        if concept.characters:
            drawn = [image for face in faces for image in face.draw(concept.characters)]
        elif shapes:
            drawn = [_draw_polygon(outlines[concept.name])]
        masks += [_to_mask(image) for image in drawn]
        labels += [label] * len(drawn)
    return torch.from_numpy(np.stack(masks)), torch.tensor(labels)


class _Face:
    """One font file, and which characters it really has."""

    def __init__(self, name: str) -> None:
        from matplotlib import ft2font, get_data_path

        path = Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        self._font = ImageFont.truetype(str(path), _DRAW)
        self._codes = frozenset(ft2font.FT2Font(str(path)).get_charmap())
        self._tex = name.startswith("cm")
        self._digits = name != "cmmi10"

    def _has(self, char: str) -> bool:
        if self._tex and not (char.isascii() and char.isalnum()):
            return False
        return ord(char) in self._codes and (self._digits or not char.isdigit())

    def draw(self, characters: str) -> Iterator[Image.Image]:
        for char in filter(self._has, characters):
            image = Image.new("L", (3 * _DRAW, 3 * _DRAW))
            ImageDraw.Draw(image).text((_DRAW, _DRAW), char, fill=255, font=self._font)
            yield image


def _polar(angles: Points, radii: Points | float) -> Points:
    """(n, 2) points at n angles (radians, 0 up, clockwise) and radii."""
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], axis=1)


def _corners(*xy: tuple[float, float]) -> Points:
    return np.array(xy, dtype=np.float64)


def _outlines() -> dict[str, Points]:
    """The closed outline of every drawn shape."""

    def turn(n: int) -> Points:
        return np.arange(n) * (2 * np.pi / n)

    t = turn(80)
    heart_x = 16 * np.sin(t) ** 3
    heart_y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    left = _polar(np.linspace(0.25, 0.75, 40) * 2 * np.pi + np.pi / 2, 1.0)
    r = np.linspace(0.15, 1, 120)
    return {
        "disc": _polar(t, 1.0),
        "square": _corners((0, 0), (1, 0), (1, 1), (0, 1)),
        "triangle": _polar(turn(3), 1.0),
        "diamond": _polar(turn(4), np.array([1, 0.7, 1, 0.7])),
        "star": _polar(turn(10), np.array([1, 0.4] * 5)),
        "heart": np.stack([heart_x, -heart_y], axis=1),
        "crescent": np.concatenate([left, (left * np.array([0.35, 1.0]))[::-1]]),
        "arrow": _corners((0, 2), (4, 2), (4, 0), (8, 3), (4, 6), (4, 4), (0, 4)),
        "cross": _corners(
            *((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2)),
            *((2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1)),
        ),
        "house": _corners((0, 3), (3, 0), (6, 3), (5, 3), (5, 7), (1, 7), (1, 3)),
        "zigzag": _corners(
            *((0, 1), (1, 0), (2, 1), (3, 0), (4, 1)),
            *((4, 1.4), (3, 0.4), (2, 1.4), (1, 0.4), (0, 1.4)),
        ),
        "spiral": np.concatenate([_polar(r * 5 * np.pi, r), _polar(r * 5 * np.pi, r - 0.14)[::-1]]),
    }


def _draw_polygon(points: Points) -> Image.Image:
    """A filled polygon, scaled to fill the drawing."""
    low = points.min(axis=0)
    points = (points - low) / (points.max(axis=0) - low).max() * (_DRAW - 1)
    image = Image.new("L", (_DRAW, _DRAW))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return image


def _to_mask(image: Image.Image) -> NDArray[np.float32]:
    """Crop the ink, scale its longer side to `_BOX`, centre it. (40, 40) in [0, 1]."""
    box = image.getbbox()
    if box is None:
        raise ValueError("nothing was drawn: the font has the code but no glyph for it")
    ink = image.crop(box)
    scale = _BOX / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    corner = ((MASK_SIZE - size[0]) // 2, (MASK_SIZE - size[1]) // 2)
    mask.paste(ink.resize(size, Image.Resampling.BOX), corner)
    return np.asarray(mask, dtype=np.float32) / np.float32(255)
