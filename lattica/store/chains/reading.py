"""Reading a batch of envelopes: what is authentic in it, with few signatures verified.

Each envelope names the hash of its author's previous one. So a signature that verifies also
stands for the envelopes before it in an unbroken run, and only every `MAX_VOUCHED`th one
is verified: 60 us an update become 1 us. What was vouched for may carry a signature that
somebody has spoiled; a stretch that is passed on must therefore end in one that verifies.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import msgspec
from blake3 import blake3

from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.messages import DOMAIN, MAX_VOUCHED, Step, Update
from lattica.store.chains.refusals import RefusedError

OVERHEAD = 32 * 1024  # bytes of an envelope beside pycrdt's update
MAX_VOUCHED_BYTES = 64 * 1024  # of what one signature stands for, beside its own envelope

_decode_update = msgspec.msgpack.Decoder(Update, dec_hook=wire.dec_hook).decode
_decode_step = msgspec.msgpack.Decoder(Step, dec_hook=wire.dec_hook).decode
_UPDATE, _STEP = b"\x98", b"\x96"  # MessagePack's heads of arrays of as many fields
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class Incoming(msgspec.Struct, gc=False):
    """An envelope that was read. `is_proven`: its own signature was verified."""

    envelope: Signed
    hash: bytes
    update: Update | Step
    is_proven: bool = False
    is_authentic: bool = False  # proven, or vouched for
    segment: tuple[Signed, ...] = ()  # the stretch that its proven last one stands for
    place: int = 0  # in the stretch

    def stretch(self) -> tuple[Signed, ...]:
        """The envelope and what vouches for it."""
        return self.segment[self.place :] or (self.envelope,)


class Reader:
    """Reads envelopes of one document."""

    def __init__(self, mesh: PeerId, document: str, max_update: int) -> None:
        self._mesh = mesh
        self._document = document
        self._max_payload = max_update + OVERHEAD
        self._start = _UPDATE + wire.encode((mesh, document))[1:]
        self.repeats = 0  # envelopes of the last batch that were known

    def read(
        self,
        envelopes: Iterable[Signed],
        known: Container[bytes],
        refuse: Callable[[Signed, RefusedError], None],
    ) -> list[Incoming]:
        """The authentic envelopes whose hashes are not `known`, in order; others are refused."""
        found: list[Incoming] = []
        runs: dict[bytes, list[Incoming]] = {}  # by author
        all_authentic = True
        self.repeats = 0
        for envelope in envelopes:
            author = envelope.author.raw
            digest = blake3(author + envelope.payload).digest()
            if digest in known:
                self.repeats += 1
                continue
            try:
                update = self._decode(envelope)
            except RefusedError as refusal:
                refuse(envelope, refusal)
                continue
            incoming = Incoming(envelope, digest, update)
            found.append(incoming)
            run = runs.get(author)
            if run is None:
                runs[author] = [incoming]
            elif run[-1].hash == update.previous and run[-1].update.sequence + 1 == update.sequence:
                run.append(incoming)
            else:
                all_authentic = authenticate(run) and all_authentic
                runs[author] = [incoming]
        for run in runs.values():
            all_authentic = authenticate(run) and all_authentic
        if all_authentic:
            return found
        for incoming in found:
            if not incoming.is_authentic:
                short = incoming.envelope.author.short
                refuse(
                    incoming.envelope,
                    RefusedError("forged", f"the signature of {short} does not verify"),
                )
        return [incoming for incoming in found if incoming.is_authentic]

    def _decode(self, envelope: Signed) -> Update | Step:
        payload = envelope.payload
        if len(payload) > self._max_payload:
            raise RefusedError("oversized", f"an envelope of {len(payload)} bytes")
        if envelope.domain != DOMAIN:
            raise RefusedError("forged", f"signed for {envelope.domain!r}, not for {DOMAIN!r}")
        try:
            # Nearly all start with the same bytes, which need not become objects each time.
            if payload.startswith(self._start):
                return _decode_step(_STEP + payload[len(self._start) :])
            update = _decode_update(payload)
        except _DECODE_ERRORS as error:
            raise RefusedError("forged", f"the payload is not an update: {error}") from None
        if update.mesh.raw != self._mesh.raw or update.document != self._document:
            raise RefusedError("foreign", f"an update of {update.document!r}")
        return update


def authenticate(run: Sequence[Incoming]) -> bool:
    """Verify every `MAX_VOUCHED`th signature of a run, and more where one is spoiled.

    Whether all are authentic.
    """
    stop = len(run)
    all_authentic = True
    while stop:
        last = stop - 1
        if not run[last].envelope.verifies():
            stop, all_authentic = last, False
            continue
        run[last].is_proven = run[last].is_authentic = True
        # What it vouches for: few enough for a proof of a fork to hold them.
        start, size = last, 0
        while start and last - start + 1 < MAX_VOUCHED:
            size += len(run[start - 1].envelope.payload)
            if size > MAX_VOUCHED_BYTES:
                break
            start -= 1
            run[start].is_authentic = True
        if start < last:
            segment = tuple(incoming.envelope for incoming in run[start:stop])
            for place, incoming in enumerate(run[start:last]):
                incoming.segment, incoming.place = segment, place
        stop = start
    return all_authentic
