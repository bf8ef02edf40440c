"""What was recorded can be read, and belongs to the models that tests build today."""

import numpy
import pytest
import torch

from tests.support.each_family import each_family
from tests.support.peer import weights
from tests.support.peer.goldens import FIRST, MORE, SMOLLM2, Case, Goldens, load_goldens, save_goldens
from tests.support.tiny_models import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    smollm2_ids,
    tiny_ids,
    tiny_model,
)


@pytest.mark.parametrize("name", [FIRST, MORE, SMOLLM2])
def test_every_case_has_a_mask_of_its_shape_and_a_description(name: str) -> None:
    goldens = load_goldens(name)
    assert goldens
    for case, mask in goldens.items():
        width = mask.shape[-1] if case.label.endswith(" channels") else case.length
        assert mask.dtype == bool
        assert mask.shape == ((30, 3, width) if case.family == "smollm2" else (LAYERS, KV_HEADS, width))
        assert case.label.removesuffix(" channels") in goldens.metadata["presses"]
        assert mask.any()


def test_no_case_is_both_recorded_and_failed() -> None:
    for name in (FIRST, MORE):
        goldens = load_goldens(name)
        recorded = {case[:3] for case in goldens}
        assert not recorded & {
            (failure["label"], failure["family"], failure["length"])
            for failure in goldens.metadata["failures"]
        }


@each_family()
def test_tiny_models_are_those_of_the_recording(family: str) -> None:
    with torch.no_grad():
        hidden = tiny_model(family).model(input_ids=tiny_ids(701), use_cache=False).last_hidden_state[0, -1]
    torch.testing.assert_close(
        hidden, torch.from_numpy(load_goldens(MORE).arrays[f"hidden {family}"]), rtol=1e-4, atol=1e-4
    )


def test_smollm2_is_that_of_the_recording(smollm2) -> None:
    with torch.no_grad():
        hidden = smollm2.model.model(input_ids=smollm2_ids(701), use_cache=False).last_hidden_state[0, -1]
    torch.testing.assert_close(
        hidden, torch.from_numpy(load_goldens(SMOLLM2).arrays["hidden smollm2"]), rtol=1e-3, atol=1e-3
    )


def test_ids_are_ordinary_and_do_not_repeat() -> None:
    ids = tiny_ids(701, batch=2)
    assert ids.shape == (2, 701)
    assert int(ids.min()) > 3
    assert len(ids[0].unique()) == 701
    assert not torch.equal(ids[0], ids[1])


def test_made_up_weights_have_the_published_shapes() -> None:
    assert weights.q_filters(LAYERS, KV_HEADS, HEAD_DIM).shape == (LAYERS, KV_HEADS, HEAD_DIM)
    mean, covariance = weights.query_statistics(LAYERS, HEADS, HEAD_DIM)
    assert mean.shape == (LAYERS, HEADS, HEAD_DIM)
    assert bool((torch.linalg.eigvalsh(covariance) > 0).all())
    assert weights.budget_curve(LAYERS, KV_HEADS).shape == (99, LAYERS, KV_HEADS)
    assert weights.kvzap_state("mlp", 1, 64, KV_HEADS)["layers.0.2.weight"].shape == (
        KV_HEADS,
        weights.KVZAP_HIDDEN,
    )
    assert weights.gate_states(1, 64, KV_HEADS, 2)[0]["q_proj.weight"].shape == (
        KV_HEADS * 2 * weights.GATE_DIMENSION,
        64,
    )
    assert len(weights.calibration_texts()) == 50


def test_what_is_saved_is_read_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.support.peer.goldens.DATA", tmp_path)
    case = Case("Press", "llama", 5, 0.5)
    mask = numpy.array([[[True, False, True, True, False]]])
    save_goldens(
        Goldens({case: mask}, {case: {"tied": True}}, {"keys": numpy.ones(3)}, {"versions": {}}),
        tmp_path / FIRST,
    )
    again = load_goldens()
    assert (again[case] == mask).all()
    assert again.details[case] == {"tied": True}
    assert again.arrays["keys"].sum() == 3
    assert again.metadata == {"versions": {}}
