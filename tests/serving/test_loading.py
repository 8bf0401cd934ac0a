"""Model folders, good and bad."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from serving.errors import ModelDirError, UnsupportedModelError, WeightsError
from serving.loading import INDEX, ModelFolder
from serving.span import Span


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"no model directory .*nowhere"):
        ModelFolder(tmp_path / "nowhere")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"no config\.json"):
        ModelFolder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelDirError, match="cannot be used"):
        ModelFolder(tmp_path)


def test_a_model_that_is_no_causal_lm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        ModelFolder(tmp_path)


def test_a_folder_without_weights_names_the_cure(llama: Path, tmp_path: Path) -> None:
    shutil.copy(llama / "config.json", tmp_path)
    folder = ModelFolder(tmp_path)
    with pytest.raises(WeightsError, match=r"no weights.*found none.*save_pretrained"):
        folder.load(Span(0, 2))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"only pytorch_model\.bin"):
        folder.load(Span(0, 2))


def test_damaged_weights(llama: Path, tmp_path: Path) -> None:
    shutil.copy(llama / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="damaged"):
        ModelFolder(tmp_path).load(Span(0, 2))


def test_a_span_needs_only_its_own_files(llama: Path, tmp_path: Path) -> None:
    every = ModelFolder(llama).weight_files()
    needed = ModelFolder(llama).weight_files(Span(2, 3))
    assert set(needed) < set(every)
    for name in ("config.json", INDEX, *needed):
        shutil.copy(llama / name, tmp_path)
    assert ModelFolder(tmp_path).load(Span(2, 3)).span == Span(2, 3)
    with pytest.raises(WeightsError, match="lacks model-"):
        ModelFolder(tmp_path).load(Span(0, 6))


def test_a_missing_tensor_is_named(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    index = tmp_path / "m" / INDEX
    content = json.loads(index.read_text())
    lost = content["weight_map"].pop("model.layers.3.mlp.up_proj.weight")
    index.write_text(json.dumps(content))
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "m" / lost)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "m" / lost, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"layers\.3\.mlp\.up_proj"):
        ModelFolder(tmp_path / "m").load(Span(3, 4))


def test_what_the_config_says(llama: Path) -> None:
    folder = ModelFolder(llama)
    assert (folder.layers, folder.hidden_size, folder.context) == (6, 32, 256)
    assert folder.eos == (2,)


def test_threads_load_one_after_the_other(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two at once would leave transformers with its weights untied for good.
    together = threading.Barrier(2)
    met = []
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def meet(cls: Any, *args: Any, **options: Any) -> Any:
        try:
            met.append(together.wait(0.5))
        except threading.BrokenBarrierError:
            return load(cls, *args, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(meet))
    folder = ModelFolder(llama)
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(folder.load, [Span(0, 2), Span(2, 4)]))
    assert not met
    assert [model.span for model in models] == [Span(0, 2), Span(2, 4)]
