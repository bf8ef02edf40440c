"""Benchmarks: where their rows come from, how rows become prompts, and how answers are scored.

One suite per file, or one folder where it is large; its name is that of the file or folder. `base` says what
a suite is, `text/` holds what several suites need, `score_command` scores a file of predictions. Nothing here
imports torch.
"""
