"""Text from others, fit for a terminal.

Names, keys, values and errors come from peers that nobody knows. Written as they are, control
characters in them would move the cursor, hide what was printed before, or set the window's title;
and marks that turn the direction of writing would show a name that is not there.
"""

from __future__ import annotations

import unicodedata

# Controls, format characters (the directions among them), lone surrogates, line and paragraph ends.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with these


def plain(text: str, *, keep: str = "\n\t") -> str:
    """`text` with what a terminal would obey written out, as `\\x1b`; all but `keep`."""
    if text.isascii() and text.isprintable():
        return text
    kept = keep + _JOINERS
    return "".join(
        letter
        if letter in kept or unicodedata.category(letter) not in _UNSEEN
        else letter.encode("unicode_escape").decode()
        for letter in text
    )
