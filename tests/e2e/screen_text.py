"""Reads the text of a picture of the screen, by the font that drew it. Standard library only."""
import pathlib

import png

CELL_HEIGHT = 16
# A in the font of VGA text modes, of which many fonts are copies: by it a font is found in a file.
LETTER_A = bytes.fromhex("000010386cc6c6fec6c6c6c600000000")
VGA_BIOS = "/usr/share/seabios/vgabios-stdvga.bin"


class Font:
    def __init__(self, path):
        """`path`: any file that holds 256 characters of 8 x 16 pixels, a byte a row."""
        data = pathlib.Path(path).read_bytes()
        start = data.find(LETTER_A) - ord("A") * CELL_HEIGHT
        if start < 0:
            raise AssertionError(f"{path} holds no font")
        self.characters = {}
        for code in range(0x7e, 0x1f, -1):
            self.characters[data[start + code * CELL_HEIGHT:start + (code + 1) * CELL_HEIGHT]] = chr(code)

    def read(self, cell):
        """The character of 16 rows of 8 colours; a space if it is none, or has more than two colours."""
        paper = cell[0][0]
        bits = bytes(sum(1 << (7 - x) for x in range(8) if row[x] != paper) for row in cell)
        known = self.characters.get(bits) or self.characters.get(bytes(0xff - row for row in bits))
        return known or " "


def read(picture, font, cell_width=8, left=0, top=0, bright=None):
    """The lines of text of a PNG file whose first cell is at (left, top). With `bright`, ink is every pixel all of whose
    channels are above it: for light text on a picture."""
    width, height, pixels = png.read(picture)
    if bright is not None:
        pixels = [[min(pixel) > bright for pixel in row] for row in pixels]
    lines = []
    for y in range(top, height - CELL_HEIGHT + 1, CELL_HEIGHT):
        rows = pixels[y:y + CELL_HEIGHT]
        line = [font.read([row[x:x + 8] for row in rows]) for x in range(left, width - 7, cell_width)]
        lines.append("".join(line).rstrip())
    return "\n".join(lines)
