"""From a model folder to a span in memory, through transformers' own loader.

The loader is given lazy slices of the safetensors files and a model that has only the
span's modules: it reads exactly the tensors they need, after its own renaming and fusing
(mixture-of-experts checkpoints are merged while they load).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from serving.errors import ModelDirError, UnsupportedModelError, WeightsError
from serving.partition import SpanModel, check_supported, cut, text_config
from serving.span import Span

hf_logging: Any = logging  # its functions carry no annotations

INDEX = "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")

# transformers loads a model with functions of torch and of its own replaced, and puts back what it
# found. Two threads that load at once put back each other's replacements: from then on no model
# of the process ties its weights, and what it says is noise.
_LOADING = threading.Lock()


class ModelFolder:
    """A Hugging Face model on disk: config.json, safetensors, tokenizer.

    Some weight files may be absent as long as no span that needs them is loaded.
    """

    def __init__(self, directory: Path) -> None:
        """Read the config; no weights yet.

        Raises:
            ModelDirError: no such directory, or no usable config.json in it.
            UnsupportedModelError: the model cannot be cut into spans.
        """
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ModelDirError(
                f"there is no model directory {self.directory}; give the path of a folder "
                "with config.json and *.safetensors"
            )
        if not (self.directory / "config.json").is_file():
            raise ModelDirError(
                f"{self.directory} has no config.json, so it is not a Hugging Face model folder"
            )
        try:
            self.config: Any = AutoConfig.from_pretrained(
                self.directory, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelDirError(f"{self.directory}/config.json cannot be used: {error}") from None
        check_supported(self.config)
        self._tensor_names: dict[Span, frozenset[str]] = {}
        text = text_config(self.config)
        try:
            self.layers = int(text.num_hidden_layers)
            self.hidden_size = int(text.hidden_size)
        except (AttributeError, TypeError, ValueError) as error:
            raise UnsupportedModelError(f"the config names no layers: {error}") from None

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        text = text_config(self.config)
        return int(getattr(text, "max_position_embeddings", 0) or 1 << 20)

    @property
    def eos(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        found = getattr(text_config(self.config), "eos_token_id", None)
        if (self.directory / "generation_config.json").is_file():
            try:
                generation = GenerationConfig.from_pretrained(self.directory, local_files_only=True)
                found = generation.eos_token_id if generation.eos_token_id is not None else found
            except (OSError, ValueError) as error:
                raise ModelDirError(
                    f"{self.directory}/generation_config.json cannot be read: {error}"
                ) from None
        if found is None:
            return ()
        return tuple(found) if isinstance(found, list | tuple) else (int(found),)

    def weight_files(self, span: Span | None = None) -> list[str]:
        """Names of the weight files (those with tensors of `span`, where an index tells).

        Raises:
            WeightsError: the folder names no safetensors.
        """
        index = self.directory / INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
                named = {str(key): Path(str(name)).name for key, name in weight_map.items()}
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise WeightsError(f"{index} cannot be read: {error}") from None
            return sorted({f for key, f in named.items() if self._needed(key, span)})
        names = self.present_weights()
        if not names:
            others = sorted(p.name for p in self.directory.iterdir() if p.suffix in WEIGHTS)
            found = f"only {', '.join(others)}" if others else "none"
            raise WeightsError(
                f"{self.directory} has no weights: looked for *.safetensors, found {found}; "
                "copy the model's *.safetensors there, or save it with save_pretrained"
            )
        return names

    @property
    def has_index(self) -> bool:
        """Whether an index says which file has which tensor."""
        return (self.directory / INDEX).is_file()

    def present_weights(self) -> list[str]:
        """Names of the safetensors files that are here."""
        return sorted(path.name for path in self.directory.glob("*.safetensors"))

    def _needed(self, key: str, span: Span | None) -> bool:
        """Whether a tensor of the checkpoint is for `span`; when in doubt, yes."""
        if span is None:
            return True
        numbers = re.findall(r"\.(\d+)\.", f".{key}")
        if numbers:
            return int(numbers[0]) in span
        # Embeddings, norms, heads: checkpoints may name them with another prefix.
        whole, part = self._tensors(Span(0, self.layers)), self._tensors(span)
        return not _named(key, whole) or _named(key, part)

    def _tensors(self, span: Span) -> frozenset[str]:
        """Names of the tensors that `span` has in memory."""
        if span not in self._tensor_names:
            with torch.device("meta"):
                model = _span_class(self.config, span)[0](self.config)
            self._tensor_names[span] = frozenset(model.state_dict())
        return self._tensor_names[span]

    def load(self, span: Span, dtype: str = "float32") -> SpanModel:
        """Read `span`'s tensors.

        Raises:
            SpanError: the model has no such span.
            WeightsError: tensors are missing or unreadable.
        """
        span.check(self.layers)
        files = [self.directory / name for name in self.weight_files(span)]
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise WeightsError(f"{self.directory} lacks {', '.join(absent)} for layers {span}")
        holders: list[Any] = []
        try:
            return self._load(span, _dtype(dtype, self.config), files, holders)
        except SafetensorError as error:
            raise WeightsError(f"the weights in {self.directory} are damaged: {error}") from None
        finally:
            for holder in holders:
                holder.__exit__(None, None, None)

    def _load(
        self, span: Span, dtype: torch.dtype, files: Iterable[Path], holders: list[Any]
    ) -> SpanModel:
        slices: dict[str, Any] = {}
        for path in files:
            holder: Any = safe_open(path, framework="pt")
            holder.__enter__()
            holders.append(holder)
            slices.update({key: holder.get_slice(key) for key in holder.keys()})  # noqa: SIM118
        cls, width = _span_class(self.config, span)
        with _LOADING, _quiet():
            model, report = cls.from_pretrained(
                None,
                config=self.config,
                state_dict=slices,
                dtype=dtype,
                output_loading_info=True,
            )
        lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
        if lacking:
            raise WeightsError(
                f"the weights in {self.directory} lack {len(lacking)} tensors of layers {span}, "
                f"{lacking[0]} among them"
            )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return SpanModel(model, span, width[0])


def _named(key: str, names: frozenset[str]) -> bool:
    return any(name.endswith(key) or key.endswith(name) for name in names)


def warm() -> None:
    """Import what transformers imports at its first use, a second's work.

    Done before a peer joins: imports hold the interpreter and would delay its heartbeats.
    """
    config = AutoConfig.for_model("llama")
    AutoModelForCausalLM._model_mapping[type(config)]


def is_weight_file(path: str) -> bool:
    """Whether a file of a model folder holds weights, to be fetched only where needed."""
    return path.endswith(WEIGHTS)


def _span_class(config: Any, span: Span) -> tuple[Any, list[int]]:
    """The family's class, cutting itself to `span` once it is built on the meta device."""
    try:
        base: Any = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise UnsupportedModelError(f"{type(config).__name__} is no causal LM") from None
    width: list[int] = []

    def build(self: Any, config: Any) -> None:
        base.__init__(self, config)
        width[:] = [self.get_input_embeddings().embedding_dim]
        cut(self, span)

    # The name stays: transformers keys its weight conversions by it.
    namespace = {
        "__init__": build,
        "__module__": base.__module__,
        "_keys_to_ignore_on_load_unexpected": [r".*"],  # other peers' tensors
    }
    return type(base.__name__, (base,), namespace), width


def _dtype(name: str, config: Any) -> torch.dtype:
    if name == "auto":
        found = getattr(text_config(config), "dtype", None) or "float32"
        if isinstance(found, torch.dtype):
            return found
        name = str(found)
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise WeightsError(f"{name!r} is not a floating dtype; use float32, bfloat16 or auto")
    return found


class _quiet:  # noqa: N801 - a context manager, used like a function
    """Without transformers' progress bar and its report of tensors left out on purpose."""

    def __enter__(self) -> None:
        self._level: int = hf_logging.get_verbosity()
        self._bar: bool = hf_logging.is_progress_bar_enabled()
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        hf_logging.set_verbosity(self._level)
        if self._bar:
            hf_logging.enable_progress_bar()
