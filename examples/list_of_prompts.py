"""A press around `model.generate`: a list of prompts of different lengths, each compressed by itself.

python examples/list_of_prompts.py
"""

from longpress import KVzipPress, SnapKVPress, load_model

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
QUESTION = "\n\nWhat is the special magic number of {name}?"
NUMBERS = {"Ada": (48213, 2), "Bob": (90177, 5), "Eve": (31506, 3)}

loaded = load_model("smollm2")
model, tokenizer = loaded.model, loaded.tokenizer
prompts = []
for name, (number, n) in NUMBERS.items():
    text = f"{FILLER * n}The special magic number of {name} is {number}. {FILLER * n}"
    message = {"role": "user", "content": text + QUESTION.format(name=name)}
    prompts.append(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))

batch = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
batch = {name: batch[name].to(loaded.device) for name in ("input_ids", "attention_mask")}

for press in (SnapKVPress(0.5), KVzipPress(0.5)):
    with press(model):
        ids = model.generate(**batch, max_new_tokens=20, do_sample=False)
    answers = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{press.name:<8} {answers}")
