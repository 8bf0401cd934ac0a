"""One thread for torch, no progress bars, and a small model shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.serving.models import build, build_chat

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 6 layers in several weight files."""
    return build("llama", tmp_path_factory.mktemp("models") / "tiny-llama", shard="60KB")


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a byte-level tokenizer and a chat template."""
    return build_chat(tmp_path_factory.mktemp("models") / "tiny-chat")
