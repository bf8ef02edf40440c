"""Recorded decisions of kvpress, read without kvpress: the positions it keeps on models made anew.

A file holds boolean masks packed to bits, loose arrays, and one JSON text that says what every row is.
Nothing is pickled.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

DATA = Path(__file__).parents[2] / "data"
FIRST, MORE, SMOLLM2, REST = (f"kvpress_kept{part}.npz" for part in ("", "_more", "_smollm2", "_rest"))


class Case(NamedTuple):
    """What was run: press, model family, context length, ratio (0.0: the press has its own parameter)."""

    label: str
    family: str
    length: int
    ratio: float


@dataclass
class Goldens(Mapping[Case, NDArray[numpy.bool_]]):
    """Masks (layers, heads, length) by `Case` or a plain tuple, true where kvpress keeps the position.

    Attributes:
        masks: The masks.
        details: What else is known of a case. `unstable`: how many positions change when every weight moves
            by about one rounding error; a comparison may differ in that many. `tied`: kvpress chose among
            equal scores, so only the scores of what it keeps are determined. Others are named in the
            recording script.
        arrays: Loose arrays by name, as re-rotated keys.
        metadata: Origin, versions, `presses` (label to class and parameters), `failures` (label, family,
            length, error text).
    """

    masks: dict[Case, NDArray[numpy.bool_]] = field(default_factory=dict)
    details: dict[Case, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, case: Case) -> NDArray[numpy.bool_]:
        return self.masks[case]

    def __iter__(self) -> Iterator[Case]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def cases(self, label: str) -> list[Case]:
        """The recorded cases of one press configuration."""
        return [case for case in self.masks if case.label == label]


def load_goldens(name: str = FIRST) -> Goldens:
    """Read one recorded file of `tests/data`."""
    with numpy.load(DATA / name, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    metadata = json.loads(str(arrays.pop("metadata")))
    packed = {key: arrays.pop(key) for key in list(arrays) if key.startswith("masks ")}
    goldens = Goldens(arrays=arrays, metadata=metadata)
    for entry in metadata.pop("entries"):
        case = Case(*entry.pop("case"))
        shape = tuple(entry.pop("shape"))
        row = packed[_shape_name(shape)][entry.pop("row")]
        goldens.masks[case] = numpy.unpackbits(row, count=int(numpy.prod(shape))).reshape(shape).astype(bool)
        goldens.details[case] = entry
    return goldens


def save_goldens(goldens: Goldens, path: Path) -> None:
    """Write a file that `load_goldens` reads."""
    rows: dict[str, list[NDArray[numpy.uint8]]] = {}
    entries = []
    for case, mask in goldens.masks.items():
        stack = rows.setdefault(_shape_name(mask.shape), [])
        entries.append(
            {
                "case": list(case),
                "shape": list(mask.shape),
                "row": len(stack),
                **goldens.details.get(case, {}),
            }
        )
        stack.append(numpy.packbits(mask))
    arrays = {**goldens.arrays, **{name: numpy.stack(stack) for name, stack in rows.items()}}
    numpy.savez_compressed(
        path, metadata=numpy.array(json.dumps({**goldens.metadata, "entries": entries})), **arrays
    )


def _shape_name(shape: tuple[int, ...]) -> str:
    return "masks " + "x".join(map(str, shape))
