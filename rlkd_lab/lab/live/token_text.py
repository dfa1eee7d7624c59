"""Token strings as a reader should see them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in byte-level tokenizers such as GPT-2's.

    Printable bytes stand for themselves; the others follow from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def visible(tokens: Sequence[str]) -> list[str]:
    """Return token strings as a reader should see them.

    Spaces become ␣, line ends ⏎, tabs ⇥; other invisible characters become their number.

    >>> visible(["Ġof", "Ċ", "<eos>", "Â"])
    ['␣of', '⏎', '<eos>', '⟨C2⟩']
    >>> visible(["▁of", " ", "\\u202e"])
    ['␣of', '␣', '⟨U+202E⟩']
    """
    # Only a byte-level vocabulary writes a space as Ġ; in others an É is an É.
    bytes_meant = any(character in token for token in tokens for character in "ĠĊ")
    return [_visible(token, bytes_meant) for token in tokens]


def _visible(token: str, bytes_meant: bool) -> str:
    if bytes_meant and all(character in _BYTES for character in token):
        raw = bytes(_BYTES[character] for character in token)
        try:
            token = raw.decode()
        except UnicodeDecodeError:  # part of a character
            return "⟨" + " ".join(f"{byte:02X}" for byte in raw) + "⟩"
    shown = "".join(map(_sign, token))
    if shown and unicodedata.combining(shown[0]):
        shown = "◌" + shown
    return shown or "⟨empty⟩"


def _sign(character: str) -> str:
    signs = {" ": "␣", "▁": "␣", "\n": "⏎", "\t": "⇥"}
    if character in signs:
        return signs[character]
    invisible = unicodedata.category(character)[0] in "CZ"
    return f"⟨U+{ord(character):04X}⟩" if invisible else character
