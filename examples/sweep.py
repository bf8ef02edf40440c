"""A sweep: several presses, budgets and questions from one reading of the context.

python examples/sweep.py
"""

from longpress import AdaKVPress, Budget, CompressingPipeline, KnormPress, SnapKVPress, Variant, load_model

SENTENCES = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
CONTEXT = 6 * SENTENCES + "The special magic number of Ada is 48213. She lives in Turin. " + 6 * SENTENCES
QUESTIONS = ["\n\nWhat is the special magic number of Ada?", "\n\nIn which city does Ada live?"]

loaded = load_model("smollm2")
pipeline = CompressingPipeline(loaded.model, loaded.tokenizer)

variants = [
    (KnormPress(), 0.25),  # a press and the fraction of entries to remove
    (KnormPress(), 0.5),
    (AdaKVPress(SnapKVPress()), 0.5),
    Variant(SnapKVPress(), Budget(tokens=128)),  # or a number of entries to keep in every head
    Variant(KnormPress(), 0.5, cache_bits=4),  # what stays is stored in 4 bits a number
]
answers = pipeline(CONTEXT, questions=QUESTIONS, press=variants, max_new_tokens=14)

for number, written in enumerate(answers["answers"]):
    result = answers.results[number * len(QUESTIONS)]
    kept = 100 * result.context.kept_fraction  # measured
    print(f"{result.variant.press.name:<6} {result.variant.budget}: {kept:.0f} % of the bytes kept")
    for text in written:
        print(f"    {text!r}")
print(f"one prefill of {answers.results[0].context.tokens} tokens for {len(variants)} variants")
