"""Compute weights of a press for a model of your own, by the recipe of the press's authors.

The recipe (the press's method `calibrate`) runs on a text and writes what the press then loads, in the format
in which the authors publish theirs:

    longpress calibrate qfilter model=smollm2 out=weights/qfilter-smollm2
    longpress run press=qfilter presses.qfilter.weights=weights/qfilter-smollm2

`text=` is a file; by default the chapters of Walden that come with longpress, in which ruler and niah may
hide their needles: give a text of your own where that matters. `length=` is the number of tokens of a piece
of text (1000), `pieces=` how many are read at most (10: half a minute for SmolLM2 on one CPU thread, three
times that for kvzap, whose teacher is KVzip; filters have a cosine of 0.9996 to those of 63 pieces). All else
is as for `longpress run`: `model.path=`, `presses.PRESS.OPTION=`. Beside the weights stands
`calibration.json`: model and revision, hash of the text, tokens, seconds. A folder that holds such a file is
not written again, so that a path in a record means one set of weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from longpress.catalogue import ROOT, Entry
from longpress.evaluation.choices import make_press
from longpress.evaluation.config import composed, model_config, presses_beside, register

if TYPE_CHECKING:
    from presses.base import BasePress

NOTE = "calibration.json"
"""The file beside the weights that says how they were made."""

TEXT = ROOT / "benchmarks" / "text" / "walden.txt"
"""The text that is read where none is given."""

OPTIONS = {"text": str(TEXT), "out": None, "length": 1000, "pieces": 10}
"""Options of this command and their defaults; all others are Hydra's."""

SHORTEST = 16
"""Tokens that a text must have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="PRESS model=NAME out=DIR [text=FILE] [length=N] [pieces=N] [NAME=VALUE …]",
        help="a press with a recipe, the folder to write to, and what to read with which model",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the weights, and say how to use them.

    Raises:
        ValueError: the arguments are wrong, the press has no recipe, or the model cannot be loaded.
    """
    asked = Calibration.parse(arguments.arguments)
    note = calibrate(asked)
    own = [override for override in asked.overrides if override.startswith(f"presses.{asked.press}.")]
    options = " ".join([*own, f"presses.{asked.press}.weights={asked.out}"])
    print(f"{note['tokens']} tokens in {note['seconds']} s; use them with {options}")


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
        names = [argument for argument in arguments if "=" not in argument]
        values = [argument.partition("=")[::2] for argument in arguments if "=" in argument]
        given: dict[str, Any] = {**OPTIONS, **{name: value for name, value in values if name in OPTIONS}}
        if len(names) != 1 or given["out"] is None:
            raise ValueError("give one press and a folder: longpress calibrate PRESS model=NAME out=DIR")
        for name in ("length", "pieces"):
            if not str(given[name]).isdigit() or int(given[name]) < 1:
                raise ValueError(f"{name}={given[name]} must be a whole number from 1")
        text, out = (Path(given[name]).expanduser() for name in ("text", "out"))
        if not text.is_file():
            raise ValueError(f"text={text}: no file there")
        if (out / NOTE).exists():
            raise ValueError(
                f"out={out} holds weights already, which records may name; give another folder, or remove "
                "this one"
            )
        overrides = [f"{name}={value}" for name, value in values if name not in OPTIONS]
        return cls(names[0], text, out, int(given["length"]), int(given["pieces"]), overrides)


def calibrate(asked: Calibration) -> dict[str, Any]:
    """Run the recipe, write the weights.

    Returns:
        What `calibration.json` says.

    Raises:
        ValueError: the press does not exist or has no recipe, the model cannot be loaded, or the text is too
            short.
    """
    entries = presses_beside(asked.overrides)
    if not make_press(asked.press, entries).traits.has_recipe:
        able = [name for name in entries if make_press(name, entries).traits.has_recipe]
        raise ValueError(f"press {asked.press} has no published recipe; those that have: {', '.join(able)}")
    press, model = _composed(asked, entries)

    from longpress.models.loading import load_model

    loaded = load_model(model_config(model))
    text = asked.text.read_text(encoding="utf-8")
    pieces = _pieces(asked, text, loaded.tokenizer)

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


def _pieces(asked: Calibration, text: str, tokenizer: Any) -> list[list[int]]:
    """Token ids of the pieces of a text, each as the model would read it.

    Raises:
        ValueError: the text is too short.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [ids[start : start + asked.length] for start in range(0, len(ids), asked.length)][: asked.pieces]
    if len(pieces) > 1 and len(pieces[-1]) < asked.length:
        pieces.pop()
    if not pieces or len(pieces[0]) < SHORTEST:
        raise ValueError(
            f"text={asked.text} has {len(ids)} tokens; give at least {SHORTEST}, and for weights of use some "
            "ten thousand"
        )
    from longpress.pipeline.prompt import Prompt  # which needs torch

    front = Prompt(tokenizer, chat_template=False).front
    return [[*front, *piece] for piece in pieces]


def _composed(asked: Calibration, entries: Mapping[str, Entry]) -> tuple[BasePress, dict[str, Any]]:
    """The press with its options, and the fields of the model, as `longpress run` would read them.

    Raises:
        ValueError: Hydra refuses an override.
    """
    register(asked.overrides)
    try:
        config = composed([f"press={asked.press}", *asked.overrides])
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except Exception as error:  # Hydra's and OmegaConf's own, of many kinds
        raise ValueError(f"{' '.join(asked.overrides)}: {str(error).splitlines()[0]}") from error
    return make_press(plain["presses"][asked.press], entries), plain["model"]
