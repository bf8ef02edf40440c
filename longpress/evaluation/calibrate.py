"""Weights of a press for a model of your own: `python -m longpress.evaluation.calibrate PRESS model=NAME out=DIR`.

Runs the recipe of the press's authors (its method `calibrate`) on a text and writes what the press then
loads, in the format in which the authors publish theirs:

    python -m longpress.evaluation.calibrate qfilter model=smollm2 out=weights/qfilter-smollm2
    python evaluate.py press=qfilter presses.qfilter.weights=weights/qfilter-smollm2

`text=` is a file; by default the chapters of Walden that come with longpress, in which ruler and niah may
hide their needles: give a text of your own where that matters. `length=` is the number of tokens of a piece
of text (1000), `pieces=` how many are read at most (10: half a minute for SmolLM2 on one CPU thread, three
times that for kvzap, whose teacher is KVzip; filters have a cosine of 0.9996 to those of 63 pieces). All else
is as for evaluate.py: `model.path=`, `presses.PRESS.OPTION=`. Beside the weights stands `calibration.json`:
model and revision, hash of the text, tokens, seconds. A folder that holds such a file is not written again,
so that a path in a record means one set of weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from longpress.arguments import command, exit_code
from longpress.catalogue import ROOT, find, presses
from longpress.evaluation.config import make_press, register

NOTE = "calibration.json"
TEXT = ROOT / "benchmarks" / "data" / "walden.txt"
OPTIONS = {"text": str(TEXT), "out": None, "length": 1000, "pieces": 10}
"""Options of this command; the others are Hydra's."""


@dataclass(frozen=True)
class Calibration:
    """What is asked.

    Attributes:
        press: name in the catalogue.
        text: file to read.
        out: folder to write to.
        length: tokens of a piece of text.
        pieces: how many are read at most.
        overrides: for Hydra: the model, options of the press.
    """

    press: str
    text: Path
    out: Path
    length: int
    pieces: int
    overrides: list[str]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Calibration:
        """From the command line.

        Raises:
            ValueError: no press, no text file or folder, an option that is no positive number, or a folder
                that holds weights already.
        """
        given: dict[str, Any] = dict(OPTIONS)
        names = [argument for argument in arguments if "=" not in argument]
        rest = [
            argument for argument in arguments if "=" in argument and argument.split("=", 1)[0] not in OPTIONS
        ]
        given |= dict(
            argument.split("=", 1)
            for argument in arguments
            if argument.split("=", 1)[0] in OPTIONS and "=" in argument
        )
        if len(names) != 1 or given["out"] is None:
            raise ValueError(
                "give one press and a folder: python -m longpress.evaluation.calibrate PRESS model=NAME out=DIR"
            )
        for name in ("length", "pieces"):
            if not str(given[name]).isdigit() or int(given[name]) < 1:
                raise ValueError(f"{name}={given[name]} must be a whole number from 1")
        text, out = (Path(given[name]).expanduser() for name in ("text", "out"))
        if not text.is_file():
            raise ValueError(f"text={text}: no file there")
        if (out / NOTE).exists():
            raise ValueError(
                f"out={out} holds weights already, which records may name; give another folder, or remove this one"
            )
        return cls(names[0], text, out, int(given["length"]), int(given["pieces"]), rest)


def calibrate(asked: Calibration) -> dict[str, Any]:
    """Run the recipe, write the weights.

    Returns:
        What `calibration.json` says.

    Raises:
        ValueError: the press does not exist or has no recipe, the model cannot be loaded, or the text is too
            short.
    """
    folders = [one.split("=", 1)[1] for one in asked.overrides if one.startswith("presses_dir=")]
    entries = presses(folders[-1] if folders else None)
    known = find(asked.press, entries, "press").load()
    from presses.base import BasePress

    if known.calibrate is BasePress.calibrate:
        able = [name for name, entry in entries.items() if entry.load().calibrate is not BasePress.calibrate]
        raise ValueError(f"press {asked.press} has no published recipe; those that have: {', '.join(able)}")
    press, model = _composed(asked, entries)
    from longpress.models.loading import ModelConfig, load_model

    loaded = load_model(
        ModelConfig(
            **{key: value for key, value in model.items() if key in {one.name for one in fields(ModelConfig)}}
        )
    )
    text = asked.text.read_text(encoding="utf-8")
    ids = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [ids[start : start + asked.length] for start in range(0, len(ids), asked.length)][: asked.pieces]
    if len(pieces) > 1 and len(pieces[-1]) < asked.length:
        pieces.pop()
    if len(pieces[0]) < 16 if pieces else True:
        raise ValueError(
            f"text={asked.text} has {len(ids)} tokens; give at least 16, and for weights of use some ten thousand"
        )
    first = loaded.tokenizer.bos_token_id
    pieces = [[first, *piece] for piece in pieces] if loaded.tokenizer("a").input_ids[0] == first else pieces
    asked.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    press.calibrate(loaded.model, pieces, asked.out)
    note = {
        "press": asked.press,
        "options": press.parameters(),
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": loaded.dtype,
        "text": asked.text.name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "pieces": len(pieces),
        "tokens": sum(map(len, pieces)),
        "seconds": round(time.perf_counter() - started, 1),
        "longpress": version("longpress"),
    }
    (asked.out / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return note


def _composed(asked: Calibration, entries: Any) -> tuple[Any, dict[str, Any]]:
    """The press with its options, and the fields of the model, as evaluate.py would read them.

    Raises:
        ValueError: Hydra refuses an override.
    """
    register(asked.overrides)
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        try:
            plain: Any = OmegaConf.to_container(
                compose("config", overrides=[f"press={asked.press}", *asked.overrides]), resolve=True
            )
        except Exception as error:  # Hydra's own, of many kinds
            raise ValueError(f"{' '.join(asked.overrides)}: {str(error).splitlines()[0]}") from error
    return make_press(plain["presses"][asked.press], entries), plain["model"]


@exit_code
def main(arguments: Sequence[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    asked = Calibration.parse(arguments)
    note = calibrate(asked)
    own = [one for one in asked.overrides if one.startswith(f"presses.{asked.press}.")]
    print(
        f"{note['tokens']} tokens in {note['seconds']} s; use them with {' '.join([*own, f'presses.{asked.press}.weights={asked.out}'])}"
    )


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
