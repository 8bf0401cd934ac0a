"""The next token from its logits, the same wherever and whenever it is drawn.

Randomness depends on the seed and the token's position alone, so a replay on another
stage draws the same token. The Gumbel-max trick is used and not an inverse CDF: a change
of the logits in the last bits (another matmul shape) then almost never changes the draw.
"""

from __future__ import annotations

import hashlib

import msgspec
import torch


class Sampling(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How the next token is chosen."""

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # keep the smallest set of tokens with this much probability
    top_k: int = 0  # keep so many of the likeliest; 0: all
    seed: int = 0


def sample(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """The token at `position` of the sequence.

    `logits`: [vocabulary].
    """
    logits = logits.float()
    if sampling.temperature <= 0.0 or sampling.top_k == 1:
        return int(logits.argmax())
    logits = _restrict(logits / sampling.temperature, sampling)
    generator = torch.Generator().manual_seed(_mix(sampling.seed, position))
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    return int((logits.double() + gumbel).argmax())


def _restrict(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Give tokens outside of top-k and top-p no chance. The likeliest token always stays."""
    if not 0 < sampling.top_k < logits.numel() and sampling.top_p >= 1.0:
        return logits
    ordered, order = logits.sort(descending=True, stable=True)
    before = torch.softmax(ordered, dim=-1).cumsum(-1).roll(1)  # probability of likelier ones
    before[0] = 0.0
    keep = before < sampling.top_p
    keep[0] = True
    if sampling.top_k > 0:
        keep[sampling.top_k :] = False
    return torch.full_like(logits, -torch.inf).index_put((order[keep],), ordered[keep])


def _mix(seed: int, position: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
