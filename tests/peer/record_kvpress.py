"""Record which positions kvpress keeps, so that tests can compare with it where it is not installed.

Run it in an environment with kvpress 0.5.5 (README.md beside this file says how to build one):

    OMP_NUM_THREADS=1 python tests/peer/record_kvpress.py first          # tests/data/kvpress_kept.npz
    OMP_NUM_THREADS=1 python tests/peer/record_kvpress.py more           # tests/data/kvpress_kept_more.npz
    OMP_NUM_THREADS=1 python tests/peer/record_kvpress.py smollm2 DIR    # tests/data/kvpress_kept_smollm2.npz; DIR holds the GGUF file

Presses run through kvpress's public interface, `with press(model): model(ids, past_key_values=cache)`. The full cache of the very same
forward pass is copied by a hook that runs before the press; where the press gathers, a kept entry is found by the equality of its key
(its value, for presses that move keys); where it masks per head, by `masked_key_indices`.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from kvpress import (
    AdaKVPress,
    BasePress,
    ChunkKVPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KeyRerotationPress,
    KnormPress,
    ObservedAttentionPress,
    PyramidKVPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent.parent))
from tiny_models import FAMILIES, smollm2_ids, tiny_ids, tiny_model

from peer.goldens import DATA, FIRST, SMOLLM2, Case, Goldens, save_goldens

LENGTHS = (701, 90)
RATIOS = (0.25, 0.5, 0.9)
ROUNDING = 5e-7
"""Relative size of the noise on weights that shows which decisions hang on rounding."""

Make = Callable[[float], BasePress]


@dataclass(frozen=True)
class Recipe:
    """How a press configuration is built and run.

    Attributes:
        make: The press for a ratio.
        eager: Whether it needs the attention probabilities of the model.
        ratios: Ratios to run; (0.0,) for presses with a parameter of their own.
        moves_keys: Whether it changes keys, so that entries are found by their values.
    """

    make: Make
    eager: bool = False
    ratios: tuple[float, ...] = RATIOS
    moves_keys: bool = False


FIRST_GROUP = {
    "Knorm": Recipe(KnormPress),
    "KeyDiff": Recipe(KeyDiffPress),
    "StreamingLLM": Recipe(StreamingLLMPress),
    "SnapKV": Recipe(SnapKVPress),
    "SnapKV(window_size=16, kernel_size=7)": Recipe(partial(SnapKVPress, window_size=16, kernel_size=7)),
    "TOVA": Recipe(TOVAPress),
    "ExpectedAttention": Recipe(ExpectedAttentionPress),
    "ExpectedAttention(use_vnorm=False)": Recipe(partial(ExpectedAttentionPress, use_vnorm=False)),
    "ExpectedAttention(use_covariance=False)": Recipe(partial(ExpectedAttentionPress, use_covariance=False)),
    "ExpectedAttention(use_covariance=False, use_vnorm=False)": Recipe(
        partial(ExpectedAttentionPress, use_covariance=False, use_vnorm=False)
    ),
    "ExpectedAttention(epsilon=0.01)": Recipe(partial(ExpectedAttentionPress, epsilon=1e-2)),
    "ObservedAttention": Recipe(ObservedAttentionPress, eager=True),
    "SnapKV(eager)": Recipe(SnapKVPress, eager=True),
    "AdaKV(SnapKV)": Recipe(lambda ratio: AdaKVPress(SnapKVPress(ratio))),
    "AdaKV(ExpectedAttention(epsilon=0.01))": Recipe(lambda ratio: AdaKVPress(ExpectedAttentionPress(ratio, epsilon=1e-2))),
    "AdaKV(Knorm, alpha_safeguard=0)": Recipe(lambda ratio: AdaKVPress(KnormPress(ratio), alpha_safeguard=0.0)),
    "PyramidKV": Recipe(PyramidKVPress),
    "PyramidKV(window_size=16, beta=4)": Recipe(partial(PyramidKVPress, window_size=16, beta=4)),
    "ChunkKV(SnapKV)": Recipe(lambda ratio: ChunkKVPress(SnapKVPress(ratio), chunk_length=20)),
    "ChunkKV(Knorm, chunk_length=8)": Recipe(lambda ratio: ChunkKVPress(KnormPress(ratio), chunk_length=8)),
    "KeyRerotation(Knorm)": Recipe(lambda ratio: KeyRerotationPress(KnormPress(ratio)), moves_keys=True),
    "KeyRerotation(SnapKV)": Recipe(lambda ratio: KeyRerotationPress(SnapKVPress(ratio)), moves_keys=True),
}
REROTATED = ({("KeyRerotation(Knorm)", family, 90, 0.5) for family in FAMILIES}) | {
    ("KeyRerotation(Knorm)", "llama", 701, 0.9),
    ("KeyRerotation(SnapKV)", "llama", 701, 0.9),
}
"""Cases whose re-rotated keys are stored, as "keys LABEL FAMILY LENGTH RATIO" (layers, heads, kept, d), in order of position."""


def describe(press: Any) -> Any:
    """Class and parameters of a press, without its ratio, as JSON values."""
    if isinstance(press, BasePress):
        given = {name: describe(value) for name, value in vars(press).items() if not name.startswith("_") and name != "compression_ratio"}
        return {"class": type(press).__name__, **{name: value for name, value in given.items() if value is not NotImplemented}}
    if isinstance(press, list | tuple):
        return [describe(item) for item in press]
    return press if isinstance(press, str | int | float | bool | None) else NotImplemented


@dataclass
class Run:
    """One context, once through a model under a press."""

    keys: list[Tensor]
    values: list[Tensor]
    cache: DynamicCache
    model: PreTrainedModel

    def kept(self, moves_keys: bool) -> numpy.ndarray:
        """Mask (layers, heads, length) of what the press keeps of batch row 0."""
        return numpy.stack([self._kept(layer, moves_keys) for layer in range(len(self.keys))])

    def _kept(self, layer: int, moves_keys: bool) -> numpy.ndarray:
        full = (self.values if moves_keys else self.keys)[layer][0]
        now = (self.cache.layers[layer].values if moves_keys else self.cache.layers[layer].keys)[0]
        mask = numpy.zeros(full.shape[:2], dtype=bool)
        for head in range(full.shape[0]):
            mask[head, positions(full[head], now[head])] = True
        masked = getattr(self.model.model.layers[layer].self_attn, "masked_key_indices", None)
        if masked is not None:
            batch, heads, tokens = (index.numpy() for index in masked)
            mask[heads[batch == 0], tokens[batch == 0]] = False
        return mask


def positions(full: Tensor, kept: Tensor) -> list[int]:
    """Row of `full` (T, d) that equals each row of `kept` bit by bit.

    Raises:
        ValueError: rows of `full` are not distinct.
    """
    where = {row.numpy().tobytes(): index for index, row in enumerate(full)}
    if len(where) != len(full):
        raise ValueError("equal entries in the cache: positions cannot be told apart")
    return [where[row.numpy().tobytes()] for row in kept]


@torch.no_grad()
def run(model: PreTrainedModel, press: BasePress, ids: Tensor) -> Run:
    """Prefill `ids` under `press`."""
    layers = [layer.self_attn for layer in model.model.layers]
    for layer in layers:
        layer.masked_key_indices = None
    cache = DynamicCache()  # without a configuration, so that no layer drops entries beyond its window by itself
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def copy(module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        if len(keys) < len(layers):
            keys.append(kwargs["past_key_values"].layers[module.layer_idx].keys.clone())
            values.append(kwargs["past_key_values"].layers[module.layer_idx].values.clone())

    hooks = [layer.register_forward_hook(copy, with_kwargs=True) for layer in layers]
    try:
        with press(model):
            model.model(input_ids=ids, past_key_values=cache)
    finally:
        for hook in hooks:
            hook.remove()
    return Run(keys, values, cache, model)


def shaken(model: PreTrainedModel) -> None:
    """Move every weight by about one rounding error."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + ROUNDING * torch.randn(parameter.shape, generator=generator))


def ties(press: BasePress, length: int) -> bool:
    """Whether the window that SnapKV protects with one common score is cut, so that the choice inside it is arbitrary."""
    inner = press
    while not isinstance(inner, SnapKVPress):
        inner = getattr(inner, "press", None)
        if inner is None:
            return False
    return not isinstance(press, ChunkKVPress) and max(1, int(length * (1 - inner.compression_ratio))) < inner.window_size


def record_case(goldens: Goldens, case: Case, recipe: Recipe, model: PreTrainedModel, shaken_model: PreTrainedModel, ids: Tensor) -> None:
    """Run one case on the model and on its shaken copy, and put down what is kept, or why it fails."""
    press = recipe.make(case.ratio)
    goldens.metadata["presses"].setdefault(case.label, {**describe(press), "eager": recipe.eager})
    try:
        result = run(model, press, ids)
        mask = result.kept(recipe.moves_keys)
        again = run(shaken_model, recipe.make(case.ratio), ids).kept(recipe.moves_keys)
    except Exception as error:  # a failure of kvpress is a finding, to be recorded like any other
        failure = {"label": case.label, "family": case.family, "length": case.length, "error": f"{type(error).__name__}: {error}"}
        if failure not in goldens.metadata["failures"]:
            goldens.metadata["failures"].append(failure)
            print(failure)
        return
    details: dict[str, Any] = {}
    if unstable := int((mask != again).sum()):
        details["unstable"] = unstable
    if ties(press, case.length):
        details["tied"] = True
    goldens.masks[case] = mask
    goldens.details[case] = details
    if tuple(case) in REROTATED:
        stack = torch.stack([layer.keys[0] for layer in result.cache.layers]).numpy()
        goldens.arrays["keys " + " ".join(map(str, case))] = stack


def new_goldens() -> Goldens:
    """An empty recording that says where it comes from."""
    return Goldens(
        metadata={
            "origin": "kvpress (Apache-2.0), run over the models of tests/tiny_models.py by tests/peer/record_kvpress.py",
            "versions": {name: version(name) for name in ("kvpress", "torch", "transformers", "numpy")},
            "presses": {},
            "failures": [],
        }
    )


def record_recipes(
    goldens: Goldens, recipes: dict[str, Recipe], family: str, load: Callable[[str], PreTrainedModel], contexts: Sequence[Tensor]
) -> None:
    """Run all recipes at their ratios on one model, given a function that loads it with an attention implementation."""
    for attention in ("sdpa", "eager"):
        model, copy = load(attention), load(attention)
        shaken(copy)
        for ids in contexts:
            for label, recipe in recipes.items():
                if recipe.eager == (attention == "eager"):
                    for ratio in recipe.ratios:
                        record_case(goldens, Case(label, family, ids.shape[1], ratio), recipe, model, copy, ids)


def record_first() -> None:
    """The presses that need nothing but a model."""
    goldens = new_goldens()
    for family in FAMILIES:
        record_recipes(goldens, FIRST_GROUP, family, partial(tiny_model, family), [tiny_ids(length) for length in LENGTHS])
    save_goldens(goldens, DATA / FIRST)


def record_smollm2(folder: Path) -> None:
    """The same presses on a trained model, whose layers differ more than random ones."""
    (file,) = folder.glob("*.gguf")

    def load(attention: str) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32, attn_implementation=attention)
        return model.eval()

    goldens = new_goldens()
    goldens.metadata["model"] = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    record_recipes(goldens, FIRST_GROUP, "smollm2", load, [smollm2_ids(LENGTHS[0])])
    save_goldens(goldens, DATA / SMOLLM2)


def main() -> None:
    """Record one group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", choices=("first", "more", "smollm2"))
    parser.add_argument("folder", nargs="?", type=Path, help="where the GGUF file of SmolLM2-135M lies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    if arguments.group == "first":
        record_first()
    elif arguments.group == "smollm2":
        record_smollm2(arguments.folder)


if __name__ == "__main__":
    main()
