"""The drawing can be read at 800 pixels, in light and dark, and what it names is there."""

import re
import xml.etree.ElementTree as ElementTree

from tests.support.documents import ROOT

DRAWING = ROOT / "docs" / "_static" / "architecture.svg"
SVG = "{http://www.w3.org/2000/svg}"
SMALLEST = 12


def test_no_text_is_small() -> None:
    root = ElementTree.parse(DRAWING).getroot()
    width = float(root.get("viewBox", "").split()[2])
    text = DRAWING.read_text(encoding="utf-8")
    sizes = [float(size) for size in re.findall(r"font-size(?:: |=\")([\d.]+)", text)]
    assert sizes and all(size * 800 / width >= SMALLEST for size in sizes)
    assert not re.search(r"transform|scale\(", text), "sizes hold as they are written"


def test_it_has_colours_for_light_and_dark() -> None:
    text = DRAWING.read_text(encoding="utf-8")
    light, _, dark = text.partition("prefers-color-scheme: dark")
    classes = set(re.findall(r"^ +\.(\w+) \{", light, re.MULTILINE))
    coloured = {name for name in classes if re.search(rf"\.{name} {{[^}}]*(fill|stroke): #", light)}
    assert coloured and all(f".{name} {{" in dark for name in coloured)


def test_what_it_names_exists() -> None:
    root = ElementTree.parse(DRAWING).getroot()
    labels = ["".join(node.itertext()) for node in root.iter() if "file" in node.get("class", "")]
    assert len(labels) > 10
    for label in labels:
        if "NAME" not in label:
            assert (ROOT / label).exists() or (ROOT / "longpress" / label).exists(), label


def test_it_is_described_for_who_cannot_see_it() -> None:
    root = ElementTree.parse(DRAWING).getroot()
    assert root.find(f"{SVG}title") is not None and root.find(f"{SVG}desc") is not None
