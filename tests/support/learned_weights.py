"""Made-up learned weights for the tiny models, in the published formats, and the presses that read them.

All families of `tiny_models` have the same shapes, so one file serves all.
"""

import json
import tempfile
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save_file

from presses.base import BasePress
from tests.support.peer import weights
from tests.support.tiny_models import HEAD_DIM, HEADS, KV_HEADS, LAYERS

HIDDEN, GROUP = HEADS * HEAD_DIM, HEADS // KV_HEADS


@cache
def weight_file(press: str, kind: str = "mlp") -> str:
    """Path of the file or folder for a press of the catalogue; `kind` is KVzap's."""
    folder = Path(tempfile.mkdtemp(prefix="longpress-weights-"))
    path = folder / "model.safetensors"
    if press == "qfilter":
        save_file({"q_filters": weights.q_filters(LAYERS, KV_HEADS, HEAD_DIM)}, path)
    elif press == "expected_attention_stats":
        mean, covariance = weights.query_statistics(LAYERS, HEADS, HEAD_DIM)
        save_file({"query_mean": mean, "query_cov": covariance}, path)
    elif press == "kvzap":
        save_file(weights.kvzap_state(kind, LAYERS, HIDDEN, KV_HEADS), path)
    elif press == "fastkvzip":
        path = folder / "gates.pt"
        torch.save({"module": weights.gate_states(LAYERS, HIDDEN, KV_HEADS, GROUP)}, path)
    elif press == "lukv":
        path = folder / "curve.npy"
        numpy.save(path, weights.budget_curve(LAYERS, KV_HEADS))
    elif press == "headkv":
        path = folder
        scores = weights.head_scores(LAYERS, HEADS)
        heads = {
            f"{layer}-{head}": [float(scores[layer, head])]
            for layer in range(LAYERS)
            for head in range(HEADS)
        }
        (folder / "head_scores.json").write_text(json.dumps(heads))
    elif press == "restorekv":
        path = folder
        weights.save_restorekv(folder, LAYERS, HIDDEN)
    else:
        path = folder
        sizes = {"sink_size": weights.DUO_SINK, "recent_size": weights.DUO_RECENT}
        (folder / "config.json").write_text(json.dumps(sizes))
        rows = weights.head_scores(LAYERS, KV_HEADS)
        (folder / "full_attention_heads.tsv").write_text(
            "\n".join("\t".join(map(repr, map(float, row))) for row in rows)
        )
    return str(path)


def with_weights(press: BasePress) -> BasePress:
    """`press` with made-up weights wherever it, or a press inside, needs some."""
    given: dict[str, Any] = {}
    for field in fields(press):  # type: ignore[arg-type]
        value = getattr(press, field.name)
        if isinstance(value, BasePress):
            given[field.name] = with_weights(value)
        elif field.name == "weights" and value is None:
            given[field.name] = weight_file(press.name, getattr(press, "model_type", "mlp"))
    return replace(press, **given) if given else press
