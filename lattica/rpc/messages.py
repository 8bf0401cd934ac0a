"""Every message of the RPC protocol.

The control stream carries length-prefixed MessagePack frames, each an array of messages:
those of one turn of the sender's loop share a frame, many calls a packet. Data
streams are unidirectional, start with one header frame, and carry raw bytes or items.
Call ids are chosen by the caller and grow by one with each call on a link.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

VERSION = 1
TRACE_BYTES = 16
INITIAL_CREDIT = 64 * 1024  # bytes a data stream may carry before its receiver said more
MAX_WINDOW = 16 * 1024 * 1024  # bytes; larger windows are taken for this one
MAX_BUFFERS = 4096  # buffers beside one message

# Codes of reset and stopped streams.
CANCELLED = 1
REFUSED = 2
BUSY = 3

Id = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Size = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Sizes = Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_BUFFERS)]
Name = Annotated[str, msgspec.Meta(max_length=128)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame of each side. Later versions may add fields.

    `window` is the credit in bytes of every new data stream towards the sender of this,
    `streams` the number of them it takes at a time.
    """

    version: int
    window: Size
    streams: Size


class Call(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Run a method. `timeout` is the time left in seconds (inf: none).

    `sizes` (bytes) are those of the buffers that follow on a data stream; with `spilled`
    the first of them is the message that did not fit in a frame.
    """

    call: Id
    service: Name
    method: Name
    timeout: float
    args: msgspec.Raw
    sizes: Sizes = ()
    spilled: bool = False
    trace: bytes = b""


class Result(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """The value a call returned; `sizes` and `spilled` as in `Call`."""

    call: Id
    value: msgspec.Raw
    sizes: Sizes = ()
    spilled: bool = False


class Failure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Why a call has no value. `retry_after` is in seconds, for `BusyError`."""

    call: Id
    type_name: str
    message: str
    traceback: str = ""
    retry_after: float = 0.0


class Cancel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """The caller wants the outcome no more."""

    call: Id


class Credit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Bytes that the sender of a data stream may have sent in all, after its header."""

    stream: Id
    limit: Size


class Taken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """A body has arrived whole: its place is free for the next."""

    stream: Id


class Ack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Bytes of the control stream taken in so far."""

    received: Size


AROUND_RESULT = 4  # bytes of a `Result` without buffers, beside its id and its value


def around_call(service: str, method: str) -> int:
    """Bytes of a `Call` without buffers, beside its id, its arguments and its trace id."""
    empty = Call(0, service, method, 0.0, msgspec.Raw(b""))
    return len(msgspec.msgpack.encode(empty)) - size_of_id(0)


def size_of_id(call: int) -> int:
    """Bytes of a call's id in a message."""
    if call < 0x10000:
        return 3 if call > 0xFF else 2 if call > 0x7F else 1
    return 5 if call < 2**32 else 9


Control = Hello | Call | Result | Failure | Cancel | Credit | Ack | Taken


class Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """Header of a data stream: buffers of a call (`of_result` false) or of its result."""

    call: Id
    of_result: bool


class Items(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Header of a data stream: the items a call returns, or those that its caller sends."""

    call: Id
    of_result: bool = True


Header = Body | Items


class Item(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """One large item; buffers of `sizes` bytes follow it. `spilled` as in `Call`."""

    value: msgspec.Raw
    sizes: Sizes = ()
    spilled: bool = False


class End(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """No more items, and the producer ended well."""


class Broken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """No more items, and why."""

    failure: Failure


class Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """An array of small items, so that many cost one decoding."""

    items: msgspec.Raw


StreamFrame = Item | End | Broken | Batch
