"""Key-value cache mechanics; the only package that knows transformers' internals.

Letters used in shapes everywhere: **B** batch · **T** context tokens · **H** KV heads · **G** query heads per
KV head · **d** head size · **D** hidden size · **L** layers · **K** kept positions · **R** decode rows.

What is inside, from the facts about a model to what an answer reads:

- `modules`: where the attention modules of a model are, and what each attends to
- `projections`: queries and keys before rotary embedding, for each family of models
- `rotary`: how a model turns queries and keys by position
- `rope_frequencies`: by which frequencies, where these depend on the length of the prompt
- `logits`: caps and sinks of attention logits
- `matmul`: products in float32 by the fastest library at hand
- `architecture`: which models can be compressed; the others are refused
- `observation`: `LayerObservation`, one layer as a press sees it
- `hooks.prefill`, `hooks.with_press`: watching a prefill; `with press(model)`
- `hooks.padded_batches`: contexts of different lengths inside `with press(model)`
- `hooks.replay`, `hooks.chunked_forward`: reading more on top of a full or of a compressed cache
- `hooks.decode_hooks`: what acts while an answer is written
- `budget`, `traits`: how much may stay; what kind of method a press is
- `selection`: which entries of a layer stay
- `compress`: the one road from evidence and a budget to what is stored
- `storage`, `quantization`, `devices`: entries in memory, in few bits, and on several devices
- `cache`, `row_blocks`: the compressed cache that rows of answers read and extend
- `latent`: latent attention, whose entries are keys and values in one
- `layer_state`: states of fixed size, of layers whose cache does not grow
- `attention`: attention over compressed caches; `prefill_attention`: over full ones
"""
