"""Draw the demo's sample picture, src/smartmem/demo_sample.png: a slip of paper with one line upside down.

Needs Pillow, which brings a font with it: `python tools/make_demo_sample.py`.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

LINES = [
    ("THE CORNER BOOKSHOP", 38),
    ("12 Market Street", 26),
    ("Tel. 555 0142 397", 26),
    ("", 12),
    ("2 x Pocket Atlas          19.80", 28),
    ("1 x Sketch Paper A4        7.45", 28),
    ("3 x Pencil HB              3.60", 28),
    ("1 x Night Sky Calendar    14.00", 28),
    ("", 12),
    ("Total EUR                 44.85", 34),
    ("Thank you for reading!", 28),
]
UPSIDE_DOWN = "RETURN  WITHIN  14  DAYS"


def main() -> None:
    paper = Image.new("L", (704, 576), 205)
    draw = ImageDraw.Draw(paper)
    draw.rectangle((30, 16, 674, 560), fill=248)
    y = 32
    for text, size in LINES:
        font = ImageFont.load_default(size)
        left, _, right = text.partition("  ")
        left = left.replace(" ", "  ")  # the recognizer overlooks narrow spaces
        if right:  # an article and its price, at the two margins
            price = right.strip()
            draw.text((62, y), left, 30, font)
            draw.text((642 - draw.textlength(price, font), y), price, 30, font)
        else:
            draw.text((352 - draw.textlength(left, font) / 2, y), left, 30, font)
        y += round(size * 1.55)
    font = ImageFont.load_default(28)
    width = round(draw.textlength(UPSIDE_DOWN, font))
    strip = Image.new("L", (width + 8, 40), 248)
    ImageDraw.Draw(strip).text((4, 2), UPSIDE_DOWN, 30, font)
    paper.paste(strip.rotate(180), (352 - strip.width // 2, y + 8))
    picture = paper.filter(ImageFilter.GaussianBlur(0.4)).rotate(0.6, Image.Resampling.BICUBIC, fillcolor=205)
    # Sixteen greys are enough, and make a small file.
    picture = picture.quantize(16).convert("L")
    picture.save(Path(__file__).parents[1] / "src" / "smartmem" / "demo_sample.png", optimize=True)


if __name__ == "__main__":
    main()
