"""Key-value cache mechanics; the only package that knows transformers internals.

Letters used in shapes everywhere: **B** batch · **T** context tokens · **H** KV heads · **G** query heads per
KV head · **d** head size · **D** hidden size · **L** layers · **K** kept positions · **R** decode rows.
"""
