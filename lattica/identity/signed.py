"""The one envelope for everything that outlives a connection."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from lattica.errors import SignatureError
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId

T = TypeVar("T")


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A payload, who signed it, and for what purpose.

    The domain is part of what is signed, so a signature made for one purpose
    never verifies for another.
    """

    author: PeerId
    domain: str
    payload: bytes
    signature: bytes

    @classmethod
    def seal(cls, identity: Identity, domain: str, value: Any) -> Signed:
        """Sign the MessagePack form of `value` for `domain`."""
        payload = wire.encode(value)
        return cls(
            identity.peer_id,
            domain,
            payload,
            identity.sign_bytes(_message(domain, payload)),
        )

    def open(self, domain: str, kind: type[T]) -> T:
        """Verify and decode.

        Raises:
            SignatureError: wrong domain, bad signature, or a payload that is not a `kind`.
        """
        if self.domain != domain:
            raise SignatureError(f"signed for {self.domain!r}, not for {domain!r}")
        if not self.verifies():
            raise SignatureError(f"the signature of {self.author.short} does not verify")
        try:
            return wire.decode(self.payload, kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise SignatureError(f"the payload is not a {kind.__name__}: {error}") from None

    def verifies(self) -> bool:
        """Whether the author signed this payload for this domain."""
        return self.author.verify(self.signature, _message(self.domain, self.payload))


def _message(domain: str, payload: bytes) -> bytes:
    tag = domain.encode()
    return b"lattica-signed-v1\x00" + len(tag).to_bytes(2, "big") + tag + payload
