"""Values to messages and back, with the large buffers on the side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from lattica.config import MIB
from lattica.errors import BadArgumentsError
from lattica.identity import wire
from lattica.rpc.buffers import Buffer
from lattica.rpc.messages import MAX_BUFFERS

NIL = msgspec.Raw(b"\xc0")
MAX_SPILLED = 64 * MIB  # a message without its buffers; decoding takes many times its size
ENCODE_ERRORS = (
    msgspec.MsgspecError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class Packed(NamedTuple):
    """A message, and the buffers that go beside it on a data stream."""

    value: msgspec.Raw
    views: Sequence[memoryview]
    spilled: bool  # the first view is the message itself

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each view."""
        return tuple(view.nbytes for view in self.views)


class Encoder:
    """Packs values. Buffers up to `inline_limit` bytes stay in the message while there is room."""

    def __init__(self, *, inline_limit: int, message_limit: int) -> None:
        """`message_limit`: a message above so many bytes goes to the data stream as well."""
        self._inline_limit = inline_limit
        self.message_limit = message_limit
        self._small = min(inline_limit, message_limit // 2)
        self._side: list[memoryview] = []
        self._room = 0
        encoder = msgspec.msgpack.Encoder(enc_hook=self._hook)
        self._encode = encoder.encode
        self._encode_into = encoder.encode_into

    def append(self, message: Any, out: bytearray) -> int:
        """Append a message with all that is in it, in one pass; its bytes.

        0, and `out` as it was, if its size or a large buffer ask for `pack`.

        Raises:
            ENCODE_ERRORS: it has no wire form; `out` is as it was.
        """
        before = len(out)
        if self._side:
            self._side = []
        self._room = self.message_limit // 2
        try:
            self._encode_into(message, out, -1)
        except BaseException:
            del out[before:]
            raise
        nbytes = len(out) - before
        if self._side or nbytes > self.message_limit:
            del out[before:]
            return 0
        return nbytes

    def small(self, value: Any) -> bytes | None:
        """`value` encoded, if it is small; else None: `pack` it.

        Raises:
            ENCODE_ERRORS: it has no wire form.
        """
        if self._side:
            self._side = []
        self._room = self._small
        data = self._encode(value)
        return None if self._side or len(data) > self._small else data

    def pack(self, value: Any) -> Packed:
        """Encode `value`.

        Raises:
            ENCODE_ERRORS: it has no wire form.
        """
        self._side = []  # what a value that failed to encode left behind
        self._room = self.message_limit // 2
        data = self._encode(value)
        side = self._side
        if not side and len(data) <= self.message_limit:
            return Packed(msgspec.Raw(data), (), False)
        spilled = len(data) > self.message_limit
        if spilled:
            _check_spilled(len(data))
            side.insert(0, memoryview(data))
        if len(side) > MAX_BUFFERS:
            raise ValueError(f"{len(side)} large buffers beside one message; at most {MAX_BUFFERS}")
        return Packed(NIL if spilled else msgspec.Raw(data), side, spilled)

    def _hook(self, value: Any) -> Any:
        if isinstance(value, Buffer):
            view = value.data
            if view.nbytes <= self._inline_limit and view.nbytes <= self._room:
                self._room -= view.nbytes
                return view
            self._side.append(view)
            return len(self._side) - 1
        return wire.enc_hook(value)


class Decoder:
    """Unpacks messages of one type."""

    __slots__ = ("_decode", "_into", "_landed", "_placed", "_side", "_used")

    def __init__(self, kind: Any) -> None:
        self._side: Sequence[memoryview] = ()
        self._used = 0
        self._into: Sequence[memoryview] = ()
        self._placed = 0
        self._landed = False
        self._decode = msgspec.msgpack.Decoder(kind, dec_hook=self._hook).decode

    def unpack(self, value: Any, views: Sequence[memoryview] = (), spilled: bool = False) -> Any:
        """Decode a message and its buffers.

        Raises:
            msgspec.MsgspecError, ValueError, RecursionError: it is not one value of the type.
        """
        if not views:
            return self._decode(value)
        if spilled:
            value, views = views[0], views[1:]
            _check_spilled(len(value))
        self._side, self._used = views, 0
        try:
            return self._decode(value)
        finally:
            self._side = ()

    def unpack_into(
        self, packed: Packed, into: Sequence[memoryview], *, landed: bool = False
    ) -> Any:
        """Unpack with each buffer in its destination, in the order in which they stand.

        `landed`: the views are parts of the destinations, so nothing is copied.

        Raises:
            msgspec.MsgspecError, ValueError, RecursionError: see `unpack`; or the buffers do not
                fit the destinations in number and size.
        """
        self._into, self._placed, self._landed = into, 0, landed
        try:
            value = self.unpack(*packed)
        finally:
            self._into = ()
        if self._placed != len(into):
            raise ValueError(f"{self._placed} buffers came for {len(into)} destinations")
        return value

    def _place(self, source: memoryview) -> Buffer:
        at = self._placed
        if at >= len(self._into):
            raise ValueError(f"more buffers came than the {len(self._into)} destinations given")
        target = self._into[at]
        if source.nbytes > target.nbytes:
            raise ValueError(
                f"a buffer of {source.nbytes} bytes does not fit destination {at} of "
                f"{target.nbytes}: give a larger one"
            )
        self._placed += 1
        part = target[: source.nbytes]
        if not self._landed:
            part[:] = source
        return Buffer(part)

    def _hook(self, kind: type[Any], value: Any) -> Any:
        if kind is Buffer:
            if type(value) is bytes:
                return self._place(memoryview(value)) if self._into else Buffer(value)
            if type(value) is int:
                # Each buffer once, in order: a message cannot multiply what was sent.
                if value != self._used or value >= len(self._side):
                    raise ValueError("a buffer that was not sent")
                self._used += 1
                view = self._side[value]
                return self._place(view) if self._into else Buffer(view)
            raise ValueError("a buffer is bytes")
        return wire.dec_hook(kind, value)


def place(value: Any, decoder: Decoder, into: Sequence[memoryview]) -> Any:
    """A value of this process with its buffers copied into their destinations.

    Raises:
        ENCODE_ERRORS, DECODE_ERRORS: see `Encoder.pack` and `Decoder.unpack_into`.
    """
    packed = Encoder(inline_limit=-1, message_limit=MAX_SPILLED).pack(value)
    return decoder.unpack_into(packed, into)


def _check_spilled(size: int) -> None:
    if size > MAX_SPILLED:
        raise ValueError(f"a message of {size} bytes; large data goes into a Buffer")


def convert_hook(kind: type[Any], value: Any) -> Any:
    """For `msgspec.convert` between Python values: Lattica's own types stay as they are."""
    if isinstance(value, kind):
        return value
    cure = ": wrap it in Buffer()" if kind is Buffer else ""
    raise ValueError(f"expected {kind.__name__}, not {type(value).__name__}{cure}")


def check(value: Any, kind: Any) -> Any:
    """`value` as `kind`, checked without a trip over the wire.

    Raises:
        BadArgumentsError: it is none.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=convert_hook)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
        raise BadArgumentsError(str(error)) from None
