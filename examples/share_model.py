"""`python -m examples.share_model HOME`: a model that one machine has and others load.

The first machine gives a folder with `--give FOLDER` and prints what the others type. They fetch
it from whoever has it, verified, and map it into memory where it is: there is no second copy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from lattica import Peer, PeerOptions


def load_and_write(folder: Path, prompt: str) -> str:
    """What the model answers, or how it goes on where it has no chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if tokenizer.chat_template:
        asked = [{"role": "user", "content": prompt}]
        prompt = str(
            tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        )
    # A template writes the special tokens itself.
    special = not tokenizer.chat_template
    given = tokenizer(prompt, add_special_tokens=special, return_tensors="pt")
    tokens = model.generate(**given, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(tokens[0, given.input_ids.shape[1] :], skip_special_tokens=True))


async def main(options: PeerOptions, give: Path | None, take: str, prompt: str) -> None:
    """Give until the input ends, or take, and write a line."""
    async with Peer.open(options) as peer:
        if give is not None:
            model = await peer.blocks.add(give)
            ticket = peer.invite().encode() if peer.can_invite else "…"
            print("others type: --take", model, "--ticket", ticket, flush=True)
            await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        else:
            folder = await peer.blocks.path(take)
            report = peer.blocks.report(take)
            assert report is not None
            moved = sum(report.provided.values())
            print(f"{report.held} bytes were here, {moved} came; the model is in {folder}")
            print(await anyio.to_thread.run_sync(load_and_write, folder, prompt))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path, help="a folder that keeps what this machine has")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--give", type=Path, metavar="FOLDER", help="a model to be shared")
    what.add_argument("--take", default="", metavar="ID", help="a model to be loaded")
    parser.add_argument("--ticket", help="what the first machine printed; needed once")
    parser.add_argument("--listen", default="", help="0.0.0.0:0 lets other machines in")
    parser.add_argument("--prompt", default="What is 34+57?")
    args = parser.parse_args()
    options = PeerOptions(home=args.home, ticket=args.ticket, listen=args.listen, cpus=0)
    anyio.run(main, options, args.give, args.take, args.prompt)
