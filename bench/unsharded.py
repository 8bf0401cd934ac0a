"""The reference for the ring: `python -m bench.unsharded MODEL`, transformers' own generate.

Reads lines "TOKENS", prints a line with the tokens per second of one greedy answer.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def main() -> None:
    """Answer until standard input ends."""
    import torch

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # they would write between our lines
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    model.eval()
    prompt = torch.ones((1, 8), dtype=torch.long)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
        )
        print(count / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
