"""How far a compressed context moves the model: likelihood, divergence from the full cache, agreement.

An answer that is known (the reference, and what the full cache wrote) is read behind the question through
every compressed context, in one pass, and the model's prediction of each of its tokens is compared with the
full cache's. Every token tells something, where a score only sees an answer as right or wrong, so far fewer
samples tell two presses apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longpress.pipeline.clock import now
from longpress.pipeline.decode import Decoder
from longpress.pipeline.logits import logits_of
from longpress.pipeline.rows import Answer

TOKENS = 64
"""Of a known answer, the first so many tokens are read."""

LOGIT_BYTES = 2**27
"""Bound on the logits held while comparing, which are made in blocks of positions."""


def measure(decoder: Decoder, full: Answer, answers: Sequence[Answer], reference: Sequence[int]) -> None:
    """Fill in the `fidelity` of finished answers to one question about one context.

    Each gets, for "reference" and "answer" (what the full cache wrote, without the token that ended it),
    means over the first `TOKENS`
    tokens: `…_nll`, negative log-likelihood in nats per token; `…_kl`, Kullback-Leibler divergence of its
    next-token distribution from the full cache's, KL(full || it), in nats per token; `…_agreement`, share of
    tokens at which both find the same token most likely. Also `fidelity_seconds`, its share. What is empty is
    left out, and rows with decode_hooks get nothing.

    Args:
        decoder: that wrote the answers, keeping rows after their questions.
        full: of the full cache; may be one of the answers.
        answers: of the variants.
        reference: token ids of the reference answer.
    """
    started = now()
    measured = [answer for answer in answers if answer.after is not None]
    if not measured or full.after is None:
        return
    known = measured if any(answer is full for answer in measured) else [*measured, full]
    rows = [answer.after for answer in known if answer.after is not None]
    logits, baseline = logits_of(decoder.model), next(at for at, answer in enumerate(known) if answer is full)
    for name, ids in (("reference", list(reference)[:TOKENS]), ("answer", full.token_ids[:TOKENS])):
        if ids:
            found = compare(logits, decoder.read_answer(rows, ids), baseline, ids)
            for answer, of_row in zip(measured, found, strict=False):
                answer.fidelity |= {f"{name}_{what}": value for what, value in of_row.items()}
    for answer in measured:
        answer.fidelity["fidelity_seconds"] = (now() - started) / len(measured)


@torch.no_grad()
def compare(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, full: int, ids: Sequence[int]
) -> list[dict[str, float]]:
    """Per row `nll`, `kl` and `agreement`, means over the tokens `ids`; see `measure`.

    Args:
        logits: of hidden states (*, D).
        hidden: (R, n, D) hidden states of the rows, each of which predicts one of the ids.
        full: the row of the full cache.
        ids: n tokens.
    """
    rows, n, targets = len(hidden), len(ids), torch.tensor(ids, device=hidden.device)
    sums = torch.zeros(3, rows, dtype=torch.float64)
    vocabulary = logits(hidden[0, :1]).shape[-1]
    block = max(
        1, LOGIT_BYTES // (16 * vocabulary)
    )  # logits in the model's dtype and float32, their logarithms, and products
    positions = max(1, min(n, block // rows))
    many = max(1, block // positions)
    for start in range(0, n, positions):
        here = slice(start, start + positions)
        expected = logits(hidden[full, here]).float().log_softmax(-1)  # (p, V)
        weights, likeliest = expected.exp(), expected.argmax(-1)
        for first in range(0, rows, many):
            found = logits(hidden[first : first + many, here]).float().log_softmax(-1)  # (r, p, V)
            if first <= full < first + many:
                found[full - first] = expected  # products of another size round otherwise
            wanted = targets[here].expand(found.shape[:2])[..., None]
            nll, agreement = -found.gather(-1, wanted)[..., 0], found.argmax(-1) == likeliest
            divergence = (expected - found).mul_(weights).sum(-1)
            for what, part in enumerate((nll, divergence, agreement)):
                sums[what, first : first + many] += part.double().sum(-1).cpu()
    means = (sums / n).clamp_(min=0)  # rounding can bring a divergence of nothing below 0
    return [{"nll": nll, "kl": kl, "agreement": agreement} for nll, kl, agreement in means.T.tolist()]
