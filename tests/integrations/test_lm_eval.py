"""lm-evaluation-harness with `--model longpress`: at every batch size the answers of our pipeline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from longpress import AdaKVPress, CompressingPipeline, KeyRerotationPress, KnormPress, SnapKVPress
from longpress.integrations.press_by_name import press_of
from longpress.pipeline.prompt import Question
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model
from tests.support.warm_command import ROOT

pytestmark = pytest.mark.extras

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "sleeps"]
CONTEXTS = [" ".join(WORDS[at:] * (2 + at % 3)) for at in range(6)]
CHOICES = [" fox", " dog", " a lazy quick dog"]
PRESSES = [
    {"press": "none"},
    {"press": "snapkv", "compression_ratio": 0.5, "press.window_size": 8},
    {"press": "adakv", "compression_ratio": 0.5},
    {"press": "key_rerotation", "compression_ratio": 0.5},
    {"press": "kvzip", "compression_ratio": 0.5},
]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", vocab_size=VOCABULARY)


def lm_of(model: Any, **given: Any) -> Any:
    from longpress.integrations.lm_eval_model import CompressingLM

    return CompressingLM(model, tokenizer=byte_tokenizer(chat_template=False), device="cpu", **given)


def instances(kind: str, arguments: list[tuple]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, at) for at, given in enumerate(arguments)]


def generated(lm: Any, until: list[str], tokens: int = 12) -> list[str]:
    options = {"until": until, "max_gen_toks": tokens, "do_sample": False, "temperature": 0.0}
    asked = [(context, dict(options)) for context in CONTEXTS]
    return lm.generate_until(instances("generate_until", asked), disable_tqdm=True)


@pytest.mark.parametrize("given", PRESSES, ids=lambda given: given["press"])
def test_answers_are_those_of_our_pipeline_at_every_batch_size(model: Any, given: dict[str, Any]) -> None:
    ratio = given.get("compression_ratio")
    options = {name[6:]: value for name, value in given.items() if name.startswith("press.")}
    press = press_of(given["press"], ratio, options)
    pipeline = CompressingPipeline(model, byte_tokenizer(chat_template=False))
    for last in (1, 4):
        expected = []
        for context in CONTEXTS:
            question = Question(context[-last:], max_new_tokens=12, stop=("e",))
            asked = pipeline(context[:-last], question=question, press=press, chat_template=False)
            expected.append(asked["answer"])
        assert len(set(expected)) > 2
        for size in (1, 4):
            lm = lm_of(model, batch_size=size, last_tokens=last, **given)
            assert generated(lm, ["e"]) == expected, (last, size)


@pytest.mark.parametrize("given", PRESSES, ids=lambda given: given["press"])
def test_continuations_are_scored_alike_at_every_batch_size(model: Any, given: dict[str, Any]) -> None:
    asked = [(context, choice) for choice in CHOICES for context in CONTEXTS]
    scored = [
        lm_of(model, batch_size=size, **given).loglikelihood(
            instances("loglikelihood", asked), disable_tqdm=True
        )
        for size in (1, 4)
    ]
    for one, other in zip(*scored, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4) and one[1] == other[1]
    if given["press"] == "none":
        from lm_eval.models.huggingface import HFLM

        plain = HFLM(model, tokenizer=byte_tokenizer(chat_template=False), device="cpu")
        expected = plain.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
        assert [one for one, _ in scored[0]] == pytest.approx([one for one, _ in expected], abs=1e-4)


def test_a_continuation_is_scored_over_the_compressed_context(model: Any) -> None:
    """By hand: the context without its last token is compressed, and all that follows reads what is left."""
    from transformers import DynamicCache

    from kvcache.modules import cache_keyword

    tokenizer, press = byte_tokenizer(chat_template=False), AdaKVPress(SnapKVPress(window_size=8), 0.5)
    lm = lm_of(model, press=press)
    context, choice = CONTEXTS[0], CHOICES[2]
    ids, continuation = lm.tok_encode(context), tokenizer(choice, add_special_tokens=False).input_ids
    stored = DynamicCache(config=model.config)
    with torch.no_grad(), press(model):
        model(torch.tensor([ids[:-1]]), **{cache_keyword(model): stored})
        read = torch.tensor([[ids[-1], *continuation[:-1]]])
        logits = model(read, **{cache_keyword(model): stored}).logits[0].log_softmax(-1)
    expected = float(logits.gather(-1, torch.tensor(continuation)[:, None]).sum())
    asked = instances("loglikelihood", [(context, choice)])
    assert lm.loglikelihood(asked, disable_tqdm=True)[0][0] == pytest.approx(expected, abs=1e-4)
    (kept,) = lm.prompts.kept_fractions
    assert kept == pytest.approx(0.5, abs=0.02)


def test_an_empty_context_has_nothing_to_compress(model: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    asked = instances("loglikelihood", [("", " fox"), (CONTEXTS[0], " fox"), ("", " dog")])
    ours = lm_of(model, press="knorm", compression_ratio=0.5).loglikelihood(asked, disable_tqdm=True)
    plain = HFLM(model, tokenizer=byte_tokenizer(chat_template=False), device="cpu")
    expected = plain.loglikelihood(asked, disable_tqdm=True)
    assert ours[0] == pytest.approx(expected[0]) and ours[2] == pytest.approx(expected[2])


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (lambda model: lm_of(model, press="snapkvv", compression_ratio=0.5), "did you mean snapkv"),
        (lambda model: lm_of(model, press="snapkv"), "give compression_ratio too"),
        (lambda model: lm_of(model, press="knorm", compression_ratio=0.5, last_tokens=0), "at least 1"),
        (
            lambda model: lm_of(model).loglikelihood_rolling(instances("loglikelihood_rolling", [("x",)])),
            "no context to compress",
        ),
        (
            lambda model: lm_of(model).generate_until(
                instances("generate_until", [(CONTEXTS[0], {"do_sample": True, "temperature": 0.7})])
            ),
            "decodes greedily in lm-eval",
        ),
        (
            lambda model: lm_of(model, press="decoding").loglikelihood(
                instances("loglikelihood", [(CONTEXTS[0], " fox")])
            ),
            "acts while answers are written",
        ),
    ],
)
def test_what_cannot_be_done_is_a_sentence(model: Any, work: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        work(model)


def test_a_cache_of_answers_is_refused(model: Any, tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    with pytest.raises(ValueError, match="leave it out"):
        CachingLM(lm_of(model), str(tmp_path / "answers.db"))


def save_task(folder: Path) -> None:
    """A task of lm-eval with rows of its own: it copies a word of each context."""
    rows = [{"text": context, "answer": "dog"} for context in CONTEXTS]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "copying.yaml").write_text(
        "task: copying\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        'doc_to_text: "{{text}}"\n'
        'doc_to_target: "{{answer}}"\n'
        'generation_kwargs: {until: ["e"], max_gen_toks: 8, do_sample: false}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )


def test_the_command_runs_a_task_and_says_what_was_kept(model_folder: Path, tmp_path: Path) -> None:
    save_task(tmp_path)
    answers = []
    for size in ("1", "4"):
        out = tmp_path / f"out{size}"
        arguments = [
            *("run", "--model", "longpress", "--tasks", "copying", "--include_path", str(tmp_path)),
            *("--batch_size", size, "--device", "cpu", "--log_samples", "--output_path", str(out)),
            *("--model_args", f"pretrained={model_folder},press=knorm,compression_ratio=0.5,dtype=float32"),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "longpress", "lm-eval", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=400,
        )
        assert not done.returncode, done.stdout + done.stderr
        (samples,) = out.rglob("samples_copying*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        answers.append([line["resps"] for line in sorted(lines, key=lambda line: line["doc_id"])])
        (results,) = out.rglob("results*.json")
        config = json.loads(results.read_text())["config"]
        assert config["press"] == "knorm" and config["kept_fraction"] == pytest.approx(0.5, abs=0.02)
    assert answers[0] == answers[1] and len(answers[0]) == len(CONTEXTS)


def test_a_press_around_the_model_of_lm_eval_itself_works_at_every_batch_size(model: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    for press in (KnormPress(0.5), KeyRerotationPress(KnormPress(), 0.5)):
        answers = []
        for size in (1, 4):
            lm = HFLM(model, tokenizer=byte_tokenizer(chat_template=False), device="cpu", batch_size=size)
            with press(model):
                answers.append(generated(lm, ["e"]))
        assert answers[0] == answers[1]
