"""One press on one text: how much of the cache stays, and what the model answers from it.

python examples/one_press.py
"""

from longpress import CompressingPipeline, KVzipPress, SnapKVPress, load_model

SENTENCES = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
CONTEXT = 6 * SENTENCES + "The special magic number of Ada is 48213. " + 6 * SENTENCES
QUESTION = "\n\nWhat is the special magic number of Ada?"

loaded = load_model("smollm2")  # the embedded model; an id of the hub or a folder works as well
pipeline = CompressingPipeline(loaded.model, loaded.tokenizer)

for press in (None, SnapKVPress(0.5), KVzipPress(0.5)):  # None: the full cache
    answers = pipeline(CONTEXT, question=QUESTION, press=press, max_new_tokens=16)
    kept = answers.results[0].context.kept_fraction  # measured
    print(f"{press.name if press else 'full cache':<10}  keeps {100 * kept:3.0f} %  {answers['answer']!r}")
