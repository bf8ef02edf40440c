"""A tokenizer of short pieces of words, single digits and single marks, fast enough for long prompts."""

import re
from collections.abc import Sequence

PIECES = re.compile(r"\d|[^\W\d_]{1,5}|\n|[^\w\s]|_")


class WordTokenizer:
    """Counts the characters it has read, so that a test can bound the work."""

    def __init__(self) -> None:
        self.characters = 0
        self._ids: dict[str, int] = {}
        self._pieces: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        self.characters += len(text)
        for piece in (found := PIECES.findall(text)):
            if piece not in self._ids:
                self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
        return [self._ids[piece] for piece in found]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return " ".join(self._pieces[token] for token in token_ids)
