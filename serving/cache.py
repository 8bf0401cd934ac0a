"""A KV cache that holds only some layers but answers for all of them.

transformers asks layer 0 (or the first layer of a kind) how long the cache is and how
large the masks must be. On a peer that serves later layers those entries stay empty, so
the answers here come from the layers that are really run.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from serving.span import Span


class SpanCache(DynamicCache):
    """The cache of one session for one span.

    `seen` is the number of tokens before the forward pass in progress.
    """

    def __init__(self, config: Any, span: Span) -> None:
        super().__init__(config=config)
        self.span = span
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens cached before this pass; the same for every layer."""
        if layer_idx in self.span and layer_idx in self._attention_layers():
            return int(super().get_seq_length(layer_idx))
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(length, offset) of the keys a layer of this kind will see."""
        attention = self._attention_layers()
        if layer_idx in attention:
            return super().get_mask_sizes(query_length, layer_idx)
        sliding = self.is_sliding
        wanted = layer_idx < len(sliding) and sliding[layer_idx]
        for held in attention:
            if sliding[held] == wanted:
                return super().get_mask_sizes(query_length, held)
        return self.seen + query_length, 0  # no layer of this kind is run here

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Whether tokens were seen before, for models with linear attention."""
        if layer_idx is None:
            return self.seen > 0
        return bool(super().has_previous_state(layer_idx, state_idx))

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held."""
        total = 0
        for layer in self.layers:
            for name in ("keys", "values"):
                tensor = getattr(layer, name, None)
                total += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
        return total

    def _attention_layers(self) -> list[int]:
        linear, dummy = self.is_linear, self.is_dummy
        return [
            layer
            for layer in range(self.span.start, min(self.span.end, len(self.layers)))
            if not linear[layer] and not dummy[layer]
        ]
