"""A press of one's own: a class with a score, in the pipeline, in a wrapper, and around a bare model.

python examples/own_press.py
"""

from dataclasses import dataclass

from torch import Tensor

from kvcache.observation import LayerObservation
from longpress import AdaKVPress, CompressingPipeline, load_model
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class NormRatioPress(ScorerPress):
    """Keep entries whose key is short and whose value is long."""

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): the highest are kept."""
        return layer.values.norm(dim=-1) / layer.keys.norm(dim=-1)


loaded = load_model("smollm2")
pipeline = CompressingPipeline(loaded.model, loaded.tokenizer)
context = (
    8 * "The grass is green. The sky is blue. " + "The code of Ada is 48213. " + 8 * "The sun is yellow. "
)
for press in (NormRatioPress(0.5), AdaKVPress(NormRatioPress(), 0.5)):
    answer = pipeline(context, question="\n\nWhat is the code of Ada?", press=press, max_new_tokens=12)[
        "answer"
    ]
    print(f"{type(press).__name__:<15} {answer!r}")

ids = loaded.tokenizer(f"{context}The code of Ada is", return_tensors="pt").input_ids
with NormRatioPress(0.5)(loaded.model):  # the cache of each prefill inside is compressed
    written = loaded.model.generate(ids, max_new_tokens=6, do_sample=False)
print(f"{'generate':<15} {loaded.tokenizer.decode(written[0, ids.shape[1] :])!r}")
