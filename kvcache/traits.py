"""What the engine may ask of a press: facts about the method, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The traits of a press.

    A press states where it differs from the defaults; a wrapper combines those inside it.

    Attributes:
        evicts_in_prefill: whether entries of the context are removed once it is read; else all of them stay,
            whatever the budget.
        acts_while_decoding: whether the press has a decode hook: it drops or changes entries while answers
            are written.
        has_fixed_budget: whether a field of the press sets its budget: then every ratio above 0 means that
            budget, and a sweep runs the press once.
        takes_threshold: whether entries can be chosen by the score they reach, in place of a ratio.
        ratio_is_bytes: whether at ratio r no more than 1 - r of the full cache's bytes are left. Else the
            ratio is of something else, as the press's docstring says, and only the measured kept fraction
            tells what is left.
        only_selects: whether `apply` does nothing but pick entries, so that variants may share memory.
        gives_scores: whether `scores_at` gives one score per entry, on which wrappers can be built.
        selects_by_layer: whether `select` needs of a layer only its scores (B, H, T) and no other layer, so
            that it may choose while decoding too.
        reads_again: whether `probe` lets the model read on top of the whole cached context.
        moves_positions: whether kept keys are given new positions.
        adds_entries: whether entries of the press's own join the cache: then a selection spans more than the
            context's.
        window_queries: queries at the end of the context whose attention the press looks at together.
        reads_hidden_states: whether observing looks at hidden states, not only at keys and values as cached.
        keeps_hidden_states: whether what the press observes holds the hidden states of every layer until it
            selects.
        has_recipe: whether `calibrate` computes what the press needs to know of a model.
    """

    evicts_in_prefill: bool = True
    acts_while_decoding: bool = False
    has_fixed_budget: bool = False
    takes_threshold: bool = False
    ratio_is_bytes: bool = True
    only_selects: bool = True
    gives_scores: bool = False
    selects_by_layer: bool = False
    reads_again: bool = False
    moves_positions: bool = False
    adds_entries: bool = False
    window_queries: int = 0
    reads_hidden_states: bool = True
    keeps_hidden_states: bool = False
    has_recipe: bool = False

    @property
    def is_full_cache(self) -> bool:
        """Whether nothing is ever removed: the baseline of every table, which a sweep runs once."""
        return not (self.evicts_in_prefill or self.acts_while_decoding)

    @property
    def needs_whole_context(self) -> bool:
        """Whether the press cannot compress a context chunk by chunk while it is being read."""
        return self.reads_again or self.moves_positions or self.adds_entries
