"""Text to token ids for ChatML families, so that nobody's text can forge a turn.

Control tokens are put in as ids. Text is tokenised by a copy of the checkpoint's tokenizer that knows no added tokens:
`<|im_end|>` in a question is a handful of ordinary characters. The dialects' own tags (`<think>`, `<tool_call>`,
`<tool_response>` and their closings) are the exception: where the tokenizer has them as added tokens they are looked
up, as the stock tokenizer would.

Invariant: text is tokenised in segments that end at control tokens and tags and nowhere else, so a conversation without
control tokens in its text has exactly the ids the stock tokenizer gives its ChatML rendering.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


class TextEncoder:
    """Turns a sequence of control ids and strings into token ids. `digest` names the tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a fast transformers tokenizer."""
        from tokenizers import Tokenizer

        whole: str = tokenizer.backend_tokenizer.to_str()
        self.digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
        spec = json.loads(whole)
        spec.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        self._plain = Tokenizer.from_str(json.dumps(spec))
        added = tokenizer.get_added_vocab()
        self._tags: dict[str, int] = {tag: added[tag] for tag in TAGS if tag in added}
        self._split = re.compile("(" + "|".join(map(re.escape, self._tags)) + ")") if self._tags else None

    def plain(self, text: str) -> list[int]:
        """Ids of text in which nothing is a tag."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, text: str) -> list[int]:
        """Ids of text; the dialects' tags become their added tokens."""
        if self._split is None:
            return self.plain(text)
        ids: list[int] = []
        for piece in self._split.split(text):
            if piece in self._tags:
                ids.append(self._tags[piece])
            elif piece:
                ids.extend(self.plain(piece))
        return ids

    def join(self, pieces: Iterable[str | int]) -> list[int]:
        """Ids of control ids and strings in order; neighbouring strings are one text."""
        ids: list[int] = []
        waiting: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                waiting.append(piece)
                continue
            if waiting:
                ids.extend(self.text("".join(waiting)))
                waiting.clear()
            ids.append(piece)
        if waiting:
            ids.extend(self.text("".join(waiting)))
        return ids
