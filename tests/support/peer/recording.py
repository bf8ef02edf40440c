"""Running kvpress on a context and finding out what it keeps; needs kvpress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy
import torch
from kvpress import BasePress, ChunkKVPress, ComposedPress, FinchPress, ScorerPress, SnapKVPress
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tests.support.peer.goldens import Case, Goldens

RATIOS = (0.25, 0.5, 0.9)
OWN = (0.0,)
"""Ratios of a press with a parameter of its own in place of a ratio."""
ROUNDING = 5e-7
"""Relative size of the noise on weights that shows which decisions hang on rounding."""


def same(ids: Tensor) -> Tensor:
    """The context as it is."""
    return ids


def nothing(case: Case) -> bool:
    """No case."""
    return False


@dataclass(frozen=True)
class Recipe:
    """How a press configuration is built and run.

    Attributes:
        make: The press for a ratio.
        eager: Whether it needs the attention probabilities of the model.
        ratios: Ratios to run.
        changes_keys: Whether it changes keys, so that entries are found by their values.
        zeroes_channels: Whether it zeroes channels of keys; which ones it leaves is recorded as the label
            "LABEL channels".
        seed: Seed of torch's global random state, set right before the context is read.
        tokenizer: Which tokenizer the press finds by the model's name, "template" or "plain".
        context: What is fed, from the usual token ids.
        stores: The cases of which an array is stored as "ARRAY LABEL FAMILY LENGTH RATIO".
        array: Which one: "keys" or "values" of the compressed cache (layers, heads, kept, d), in order of
            position, or "scores" (layers, heads, length), as the press's attribute `recorded_scores` gives
            them.
        note: What a reader of the numbers should know.
    """

    make: Callable[[float], BasePress]
    eager: bool = False
    ratios: tuple[float, ...] = RATIOS
    changes_keys: bool = False
    zeroes_channels: bool = False
    seed: int | None = None
    tokenizer: str | None = None
    context: Callable[[Tensor], Tensor] = same
    stores: Callable[[Case], bool] = nothing
    array: str = ""
    note: str = ""


def describe(press: Any) -> Any:
    """Class and parameters of a press, without its ratio, as JSON values."""
    if isinstance(press, BasePress):
        given = {
            name: describe(value)
            for name, value in vars(press).items()
            if not name.startswith("_") and name != "compression_ratio"
        }
        own = next(kind for kind in type(press).__mro__ if kind.__module__.startswith("kvpress."))
        return {
            "class": own.__name__,
            **{name: value for name, value in given.items() if value is not NotImplemented},
        }
    if isinstance(press, list | tuple):
        return [describe(item) for item in press]
    return press if isinstance(press, str | int | float | bool | None) else NotImplemented


@dataclass
class Run:
    """One context, once through a model under a press: the cache before the press and after it."""

    keys: list[Tensor]
    values: list[Tensor]
    cache: DynamicCache
    model: PreTrainedModel
    changes_keys: bool

    def positions(self, layer: int, head: int) -> list[int]:
        """Position of every entry that is in the cache now, in the order of the cache."""
        full, now = (self.values, "values") if self.changes_keys else (self.keys, "keys")
        total = full[layer].shape[2]  # one press leaves what it fed again behind the context
        return find(full[layer][0, head], getattr(self.cache.layers[layer], now)[0, head, :total])

    def kept(self) -> NDArray[numpy.bool_]:
        """Mask (layers, heads, length) of what the press keeps of batch row 0."""
        return numpy.stack([self._kept(layer) for layer in range(len(self.keys))])

    def _kept(self, layer: int) -> NDArray[numpy.bool_]:
        mask = numpy.zeros(self.keys[layer].shape[1:3], dtype=bool)
        masked = getattr(self.model.model.layers[layer].self_attn, "masked_key_indices", None)
        if masked is not None:  # then nothing is gathered, and masked keys may be overwritten
            batch, heads, tokens = (index.numpy() for index in masked)
            mask[:] = True
            mask[heads[batch == 0], tokens[batch == 0]] = False
            return mask
        for head in range(len(mask)):
            mask[head, self.positions(layer, head)] = True
        return mask

    def channels(self) -> NDArray[numpy.bool_]:
        """Mask (layers, heads, d) of the key channels that are not all zero."""
        return numpy.stack([(layer.keys[0] != 0).any(1).numpy() for layer in self.cache.layers])

    def stored(self, name: str) -> NDArray[numpy.float32]:
        """Keys or values of the cache now (layers, heads, kept, d), in order of position."""
        stack = []
        for index, layer in enumerate(self.cache.layers):
            heads = getattr(layer, name)[0]
            stack.append(
                torch.stack(
                    [
                        rows[torch.tensor(self.positions(index, head)).argsort()]
                        for head, rows in enumerate(heads)
                    ]
                )
            )
        return torch.stack(stack).numpy()


def find(full: Tensor, kept: Tensor) -> list[int]:
    """Row of `full` (T, d) that equals each row of `kept` bit by bit.

    Raises:
        ValueError: rows of `full` are not distinct.
    """
    where = {row.numpy().tobytes(): index for index, row in enumerate(full)}
    if len(where) != len(full):
        raise ValueError("equal entries in the cache: positions cannot be told apart")
    return [where[row.numpy().tobytes()] for row in kept]


def attention_layers(model: PreTrainedModel) -> list[Any]:
    """The attention modules, freed of what an earlier press left on them."""
    layers = [layer.self_attn for layer in model.model.layers]
    for layer in layers:
        layer.masked_key_indices = None
    return layers


@torch.no_grad()
def run(
    model: PreTrainedModel, press: BasePress, ids: Tensor, changes_keys: bool = False, seed: int | None = None
) -> Run:
    """Prefill `ids` under `press`."""
    layers = attention_layers(model)
    cache = (
        DynamicCache()
    )  # without a configuration, so that no layer drops entries beyond its window by itself
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def copy(module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        if len(keys) < len(layers):  # later passes are the press's own
            keys.append(kwargs["past_key_values"].layers[module.layer_idx].keys.clone())
            values.append(kwargs["past_key_values"].layers[module.layer_idx].values.clone())

    hooks = [layer.register_forward_hook(copy, with_kwargs=True) for layer in layers]
    try:
        if seed is not None:
            torch.manual_seed(seed)
        with press(model):
            model.model(input_ids=ids, past_key_values=cache)
    finally:
        for hook in hooks:
            hook.remove()
    return Run(keys, values, cache, model, changes_keys)


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """The model, with every weight moved by about one rounding error."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + ROUNDING * torch.randn(parameter.shape, generator=generator))
    return model


def window_ties(press: BasePress, length: int) -> bool:
    """Whether a window protected with one common score is cut, so that the choice inside it is arbitrary."""
    inner: Any = press
    while not isinstance(inner, SnapKVPress | FinchPress):
        inner = inner.presses[0] if isinstance(inner, ComposedPress) else getattr(inner, "press", None)
        if inner is None:
            return False
    return (
        not isinstance(press, ChunkKVPress)
        and max(1, int(length * (1 - inner.compression_ratio))) < inner.window_size
    )


class TieWatch:
    """Notes whether a scorer's last kept score equals the first that is dropped, in any layer and head."""

    def __init__(self, press: BasePress) -> None:
        self.tied = False
        if type(press).compress is ScorerPress.compress:
            self._score = press.score
            press.score = partial(self._watch, press)

    def _watch(self, press: ScorerPress, *arguments: Any, **keywords: Any) -> Tensor:
        scores = self._score(*arguments, **keywords)
        ordered = scores.sort(dim=-1, descending=True).values
        kept = max(1, int(scores.shape[-1] * (1 - press.compression_ratio)))
        self.tied |= bool((ordered[..., kept - 1] == ordered[..., kept]).any())
        if not hasattr(press, "recorded_scores"):
            press.recorded_scores = []
        press.recorded_scores.append(scores[0].clone())
        return scores


def record_case(
    goldens: Goldens,
    case: Case,
    recipe: Recipe,
    model: PreTrainedModel,
    shaken_model: PreTrainedModel,
    ids: Tensor,
) -> None:
    """Run one case on the model and on its shaken copy, and put down what is kept, or why it fails."""
    press = recipe.make(case.ratio)
    describe_once(goldens, case.label, recipe, press)
    try:
        watch = TieWatch(press)
        result = run(model, press, recipe.context(ids), recipe.changes_keys, recipe.seed)
        again = run(
            shaken_model, recipe.make(case.ratio), recipe.context(ids), recipe.changes_keys, recipe.seed
        )
        masks = [(case, result.kept(), again.kept())]
        if recipe.zeroes_channels:
            masks.append((case._replace(label=f"{case.label} channels"), result.channels(), again.channels()))
        if recipe.stores(case):
            scores = recipe.array == "scores"
            array = (
                torch.stack(list(press.recorded_scores)).numpy() if scores else result.stored(recipe.array)
            )
            goldens.arrays[" ".join(map(str, (recipe.array, *case)))] = array
    except Exception as error:  # a failure of kvpress is a finding, to be recorded like any other
        note_failure(goldens, case, error)
        return
    tied = watch.tied or window_ties(press, case.length)
    for name, mask, second in masks:
        goldens.masks[name] = mask
        goldens.details[name] = {}
        if unstable := int((mask != second).sum()):
            goldens.details[name]["unstable"] = unstable
        if tied and name == case:
            goldens.details[name]["tied"] = True


def describe_once(goldens: Goldens, label: str, recipe: Recipe, press: BasePress) -> None:
    """Put down what the label means."""
    if label not in goldens.metadata["presses"]:
        goldens.metadata["presses"][label] = {**describe(press), "eager": recipe.eager}
        how = {"seed": recipe.seed, "tokenizer": recipe.tokenizer, "note": recipe.note}
        if how := {name: value for name, value in how.items() if value not in (None, "")}:
            goldens.metadata.setdefault("recipes", {})[label] = how


def note_failure(goldens: Goldens, case: Case, error: Exception) -> None:
    """Put down that kvpress cannot run the case."""
    text = str(error).splitlines()[0] if str(error) else ""
    failure = {
        "label": case.label,
        "family": case.family,
        "length": case.length,
        "error": f"{type(error).__name__}: {text}",
    }
    if failure not in goldens.metadata["failures"]:
        goldens.metadata["failures"].append(failure)
        print(*failure.values(), sep=" | ")


def record_recipes(
    goldens: Goldens,
    recipes: dict[str, Recipe],
    family: str,
    load: Callable[[str], PreTrainedModel],
    contexts: Sequence[Tensor],
) -> None:
    """Run all recipes at their ratios on one model, which `load` gives with an attention implementation."""
    for attention in ("sdpa", "eager"):
        model, copy = load(attention), shaken(load(attention))
        for ids in contexts:
            for label, recipe in recipes.items():
                if recipe.eager == (attention == "eager"):
                    for ratio in recipe.ratios:
                        record_case(
                            goldens, Case(label, family, ids.shape[1], ratio), recipe, model, copy, ids
                        )


def new_goldens() -> Goldens:
    """An empty recording that says where it comes from."""
    return Goldens(
        metadata={
            "origin": "kvpress (Apache-2.0), run over the models of tests/support/tiny_models.py "
            "by tests/support/peer/record_kvpress.py",
            "versions": {name: version(name) for name in ("kvpress", "torch", "transformers", "numpy")},
            "presses": {},
            "failures": [],
        }
    )
