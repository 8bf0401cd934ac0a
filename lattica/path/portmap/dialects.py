"""PCP and NAT-PMP behind one face: how to ask a question, and what an answer says. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Protocol as Interface

import msgspec

from lattica.path.portmap import nat_pmp, pcp
from lattica.path.portmap.mapping import Protocol, Want


class Verdict(Enum):
    """What a gateway made of a question."""

    GRANTED = "granted"  # the mapping exists
    ALIVE = "alive"  # the answer to a check
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"  # it does not speak this protocol


class Drop(Enum):
    """Why a datagram is no answer."""

    MALFORMED = "malformed"
    UNEXPECTED = "unexpected"  # another question's, or none's


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    verdict: Verdict
    epoch: int | None = None
    host: str = ""  # outside; empty where the answer does not say
    port: int = 0  # outside
    lifetime: int = 0  # of a mapping, or how long a refusal stands
    reason: str = ""  # of a refusal, for people


class Dialect(Interface):
    """One protocol. A question is about a wanted port, or about nothing: a check."""

    protocol: Protocol
    needs_check: bool  # before the first mapping: only a check tells the address outside

    def ask(self, want: Want, nonce: bytes, lifetime: int, outside: int) -> bytes:
        """Ask for a port, or with lifetime 0 to forget it."""
        ...

    def check(self) -> bytes:
        """Ask for a sign of life with the epoch in it."""
        ...

    def read(self, data: bytes, want: Want | None, nonce: bytes) -> Answer | Drop:
        """What `data` says about the question asked last."""
        ...


class PcpDialect:
    """RFC 6887."""

    protocol = Protocol.PCP
    needs_check = False

    def __init__(self, client: str) -> None:
        """`client` is the address that the requests come from (§8.1)."""
        self._client = client

    def ask(self, want: Want, nonce: bytes, lifetime: int, outside: int) -> bytes:
        return pcp.encode_map(want, nonce, client=self._client, lifetime=lifetime, outside=outside)

    def check(self) -> bytes:
        return pcp.encode_announce(self._client)

    def read(self, data: bytes, want: Want | None, nonce: bytes) -> Answer | Drop:
        reply = pcp.decode_reply(data)
        if reply is None:
            return Drop.MALFORMED
        if reply.version != pcp.VERSION:
            return Answer(verdict=Verdict.UNSUPPORTED, reason=f"speaks version {reply.version}")
        got = reply.assigned
        if want is None:
            if got is not None:
                return Drop.UNEXPECTED
            return Answer(verdict=Verdict.ALIVE, epoch=reply.epoch)
        if got is None or (got.nonce, got.transport, got.internal) != (
            nonce,
            want.transport.value,
            want.port,
        ):
            return Drop.UNEXPECTED
        if reply.result in (pcp.Result.UNSUPP_VERSION, pcp.Result.UNSUPP_OPCODE):
            return Answer(verdict=Verdict.UNSUPPORTED, reason=pcp.describe(reply.result))
        is_granted = reply.result == pcp.Result.SUCCESS
        return Answer(
            verdict=Verdict.GRANTED if is_granted else Verdict.REFUSED,
            epoch=reply.epoch,
            host=got.host if is_granted else "",
            port=got.port,
            lifetime=reply.lifetime,
            reason="" if is_granted else pcp.describe(reply.result),
        )


class NatPmpDialect:
    """RFC 6886."""

    protocol = Protocol.NAT_PMP
    needs_check = True

    def ask(self, want: Want, nonce: bytes, lifetime: int, outside: int) -> bytes:
        return nat_pmp.encode_map(want, lifetime=lifetime, outside=outside)

    def check(self) -> bytes:
        return nat_pmp.encode_address()

    def read(self, data: bytes, want: Want | None, nonce: bytes) -> Answer | Drop:
        reply = nat_pmp.decode_reply(data)
        if reply is None:
            return Drop.MALFORMED
        if reply.result == nat_pmp.Result.UNSUPPORTED_VERSION:
            return Answer(verdict=Verdict.UNSUPPORTED, reason=nat_pmp.describe(reply.result))
        got = reply.assigned
        if reply.opcode != nat_pmp.opcode_of(want) or (got is not None and got.want != want):
            return Drop.UNEXPECTED
        if reply.result != nat_pmp.Result.SUCCESS:
            reason = nat_pmp.describe(reply.result)
            return Answer(verdict=Verdict.REFUSED, epoch=reply.epoch, reason=reason)
        if got is None:
            return Answer(verdict=Verdict.ALIVE, epoch=reply.epoch, host=reply.host)
        return Answer(
            verdict=Verdict.GRANTED, epoch=reply.epoch, port=got.port, lifetime=got.lifetime
        )
