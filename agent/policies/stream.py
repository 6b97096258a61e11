"""Text piece by piece while tokens come in, never cutting a character in two.

A byte-level token may hold part of a character, which decodes to U+FFFD until the rest has come. Pieces are held back
until they are whole; `finish` gives what is left. The pieces joined are the text of all ids decoded at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
_CONTEXT = 4  # tokens decoded again with each new one, for decoders whose output depends on the neighbours before


class TextStream:
    """Turns growing ids into pieces of text."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._from = 0  # start of the decoded window
        self._upto = 0  # ids whose text has been given

    def push(self, token: int) -> str:
        """The new text this token completes; "" while a character is unfinished."""
        self._ids.append(token)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._advance()
        return piece

    def finish(self) -> str:
        """What was held back: the text of an unfinished character, if any."""
        piece = self._piece()
        self._advance()
        return piece

    def _piece(self) -> str:
        given = self._decode(self._ids[self._from : self._upto])
        return self._decode(self._ids[self._from :])[len(given) :]

    def _advance(self) -> None:
        self._upto = len(self._ids)
        self._from = max(self._from, self._upto - _CONTEXT)
