"""Names in figures: in fonts that have their letters, of a length that there is room for."""

from functools import cache
from typing import Any

from matplotlib import font_manager

FONT_SIZE = 10  # points
MOST_CHARACTERS = 28  # of a class name in a picture
# Fonts with Chinese, Japanese and Korean letters, of which Matplotlib brings none.
_EAST_ASIAN_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "SimHei", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
    "PingFang SC", "Hiragino Sans",
)  # fmt: skip


def text_options(size: float = FONT_SIZE) -> dict[str, Any]:
    """Of Matplotlib's texts that show names, in which nothing is a formula."""
    return {"fontsize": size, "fontfamily": _font_families(), "parse_math": False}


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """A name on one line, of ``most`` characters: a longer one lacks its middle."""
    text = " ".join(text.split())
    end = most // 3
    if len(text) <= most:
        return text
    return f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"


def can_be_drawn(text: str) -> bool:
    """Whether the installed fonts have all characters of a text, which are empty boxes if not."""
    fonts = _characters_of_fonts()
    return all(any(ord(x) in font for font in fonts) for x in text if not x.isspace())


def name_without_font(index: int) -> str:
    """What a class is called whose name the installed fonts lack characters of."""
    return f"class {index}"


@cache
def _characters_of_fonts() -> list[set[int]]:
    paths = [font_manager.findfont(family) for family in _font_families()]
    return [set(font_manager.get_font(path).get_charmap()) for path in paths]


@cache
def _font_families() -> list[str]:
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(font for font in _EAST_ASIAN_FONTS if font in installed)]
