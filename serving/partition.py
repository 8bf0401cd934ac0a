"""Cut a Hugging Face causal LM to a span and run that span through HF's own forward.

The whole model is built on the meta device, so masks, rotary embeddings, sliding windows
and cache classes are HF's own for every family. Layers of other peers become
pass-throughs without weights. A gate around each held layer puts the previous stage's
activations in place of whatever the model computed before (`inject`) and ends the pass
after the last layer wanted (`catch`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from serving.cache import SpanCache
from serving.errors import RequestError, SpanError, UnsupportedModelError
from serving.span import Span


class PassThrough(nn.Module):
    """Stands where another peer's layer is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Some families read plain attributes of a layer (its attention type) in their loop.
        for name, value in vars(layer).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states, unchanged."""
        return pass_on(args, kwargs)


class Absent(nn.Module):
    """Stands where an embedding or a head is that this span does not use."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Never part of a pass."""
        raise SpanError("this span holds neither the embedding nor the head asked for")


def pass_on(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a skipped layer returns.

    Layers of most families return a tensor, those of some a tuple of which the model takes
    the first item. A tuple satisfies both: the next gate discards what it is given, and
    another pass-through hands the tuple on.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    return hidden if isinstance(hidden, tuple) else (hidden, None, None)


class _Caught(Exception):  # noqa: N818 - it ends a pass, it is no error
    """Carries the activations out of HF's forward."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Pass:
    """One forward pass in progress."""

    def __init__(self, span: Span, injected: torch.Tensor | None, layers: int) -> None:
        self.span = span
        self.injected = injected
        self.layers = layers


def text_config(config: Any) -> Any:
    """The part of a (composite) config that describes the decoder."""
    return config.get_text_config(decoder=True)


def check_supported(config: Any) -> None:
    """Raise if the family's layers depend on more than their predecessor's output.

    Raises:
        UnsupportedModelError: names what stands in the way.
    """
    text = text_config(config)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError("encoder-decoder models have no single run of layers")
    if getattr(text, "num_kv_shared_layers", 0):
        raise UnsupportedModelError("the model shares keys and values between layers")
    if getattr(text, "hidden_size_per_layer_input", 0):
        raise UnsupportedModelError("the model feeds token embeddings into every layer")
    if getattr(text, "num_nextn_predict_layers_in_forward", 0):
        raise UnsupportedModelError("the model predicts several tokens in one pass")


def find_layers(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """The decoder's layer list and its name: the shallowest list of `count` modules.

    Raises:
        UnsupportedModelError: there is none.
    """
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of {count} layers")
    _, name, found = min(lists, key=lambda item: item[:2])
    return name, found


def cut(model: Any, span: Span) -> None:
    """Drop every module that `span` does not need from a model on the meta device."""
    count = int(text_config(model.config).num_hidden_layers)
    span.check(count)
    _, layers = find_layers(model, count)
    for index in range(count):
        if index not in span:
            layers[index] = PassThrough(layers[index])
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and any(
        model.get_parameter(target) is getattr(head, "weight", None)
        for target in model.all_tied_weights_keys
    )
    first, last = span.start == 0, span.end == count
    if not first and not (last and tied):
        _replace(model, embedding, Absent())
    if not last and head is not None:
        _replace(model, head, Absent())
    kept = dict(model.named_parameters(remove_duplicate=False))
    model.all_tied_weights_keys = {
        target: source
        for target, source in model.all_tied_weights_keys.items()
        if target in kept and source in kept
    }


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    names = [name for name, module in model.named_modules() if module is old]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, child, new)


class SpanModel:
    """A span of a causal LM, ready to run. Not thread-safe: one pass at a time."""

    def __init__(self, model: Any, span: Span, embedding_width: int) -> None:
        """`model` is cut to `span` and its tensors are loaded."""
        text = text_config(model.config)
        self.model = model
        self.config = model.config
        self.span = span
        self.layers = int(text.num_hidden_layers)
        self.hidden_size = int(text.hidden_size)
        self.dtype: torch.dtype = model.dtype
        self._embedding_width = embedding_width
        self._pass: _Pass | None = None
        names = inspect.signature(type(model).forward).parameters
        self._keeps_logits = "logits_to_keep" in names
        _, stack = find_layers(model, self.layers)
        for index in range(span.start, span.end):
            layer: Any = stack[index]
            layer.forward = self._gate(index, layer.forward)

    def new_cache(self, span: Span) -> SpanCache:
        """An empty cache for a session that uses `span` of this model."""
        if not self.span.covers(span):
            raise SpanError(f"layers {span} are not all in {self.span}")
        return SpanCache(self.config, span)

    def check_tokens(self, tokens: list[int]) -> None:
        """Refuse ids that the embedding does not have.

        Raises:
            RequestError: names the first one.
        """
        size = int(self.model.get_input_embeddings().num_embeddings)
        for token in tokens:
            if not 0 <= token < size:
                raise RequestError(f"token {token} is not in the vocabulary of {size}")

    def embed(self, tokens: list[int]) -> torch.Tensor:
        """What the first layer takes, before the family's own additions.

        Returns: [1, tokens, embedding width].
        """
        embedding = self.model.get_input_embeddings()
        result: torch.Tensor = embedding(torch.tensor([tokens], dtype=torch.long))
        return result

    @torch.inference_mode()
    def run(self, cache: SpanCache, given: list[int] | torch.Tensor) -> torch.Tensor:
        """Run the cache's span over new tokens and extend the cache.

        `given` is token ids for a span that starts at layer 0, else activations
        [1, tokens, hidden].

        Returns: logits of the last token [vocabulary] if the span ends the model, else
        activations [1, tokens, hidden].
        """
        injected = None
        if isinstance(given, torch.Tensor):
            injected = given
            count = given.shape[1]
            # The model's entry runs on zeros: its result is discarded by the first gate.
            entry = torch.zeros(1, count, self._embedding_width, dtype=self.dtype)
        else:
            count = len(given)
            entry = self.embed(given)
        positions = torch.arange(cache.seen, cache.seen + count).unsqueeze(0)
        extra = {"logits_to_keep": 1} if self._keeps_logits else {}
        self._pass = _Pass(cache.span, injected, self.layers)
        try:
            output = self.model(
                inputs_embeds=entry,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
                **extra,
            )
            result: torch.Tensor = output.logits[0, -1]
        except _Caught as caught:
            result = caught.hidden
        finally:
            self._pass = None
        cache.seen += count
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        tensors = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return sum(tensor.nbytes for tensor in tensors.values() if not tensor.is_meta)

    def _gate(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            now = self._pass
            assert now is not None, "a layer runs only inside SpanModel.run"
            if index not in now.span:
                return pass_on(args, kwargs)
            if index == now.span.start and now.injected is not None:
                if args:
                    args = (now.injected, *args[1:])
                else:
                    kwargs["hidden_states"] = now.injected
            output = forward(*args, **kwargs)
            if index == now.span.end - 1 and now.span.end < now.layers:
                raise _Caught(output[0] if isinstance(output, tuple) else output)
            return output

        return gated
