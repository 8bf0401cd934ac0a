"""Values to messages and back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import BadArgumentsError
from lattica.identity.keys import Identity, PeerId
from lattica.rpc import Buffer
from lattica.rpc.codec import MAX_SPILLED, Decoder, Encoder, check


class Parcel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    parts: tuple[Buffer, ...]
    extra: dict[str, list[Buffer]] = {}
    sender: PeerId | None = None


def encoder() -> Encoder:
    return Encoder(inline_limit=16, message_limit=256)


@given(
    st.text(max_size=300),
    st.lists(st.binary(max_size=60), max_size=12),
    st.dictionaries(st.text(max_size=4), st.lists(st.binary(max_size=60), max_size=3), max_size=4),
)
def test_buffers_anywhere_come_back_in_place(
    name: str, parts: list[bytes], extra: dict[str, list[bytes]]
) -> None:
    parcel = Parcel(
        name,
        tuple(map(Buffer, parts)),
        {key: [Buffer(part) for part in value] for key, value in extra.items()},
        Identity(b"k" * 32).peer_id,
    )
    packed = encoder().pack(parcel)
    assert len(bytes(packed.value)) <= 256
    views = [memoryview(bytes(view)) for view in packed.views]
    assert Decoder(Parcel).unpack(packed.value, views, packed.spilled) == parcel


def test_large_buffers_are_not_copied() -> None:
    data = bytearray(1000)
    packed = encoder().pack(Parcel("x", (Buffer(data),)))
    data[7] = 42
    assert packed.views[0][7] == 42
    back = Decoder(Parcel).unpack(packed.value, packed.views)
    data[8] = 43
    assert back.parts[0].data[8] == 43


@pytest.mark.parametrize(
    "message",
    [
        ["x", [1]],  # the second buffer, where there is none
        ["x", [0, 0]],  # one buffer twice: a message must not multiply what was sent
        ["x", [-1]],
        ["x", ["text"]],
        ["x", [None]],
        ["x", [b""], {}, b"short"],  # not a PeerId
        ["x", [], {}, None, 1],
        [1, []],
    ],
)
def test_messages_that_are_not_what_they_say(message: list[Any]) -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode(message))
    with pytest.raises((msgspec.MsgspecError, ValueError)):
        Decoder(Parcel).unpack(raw, [memoryview(b"only one")])


@given(st.binary(max_size=200), st.lists(st.binary(max_size=8), max_size=3), st.booleans())
def test_random_bytes_raise_only_what_is_announced(
    data: bytes, sides: list[bytes], spilled: bool
) -> None:
    views = [memoryview(side) for side in sides]
    try:
        Decoder(Parcel).unpack(msgspec.Raw(data), views, spilled)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    raw = msgspec.Raw(b"\x91" * 100_000 + b"\xc0")
    with pytest.raises((msgspec.MsgspecError, RecursionError)):
        Decoder(Any).unpack(raw)


def test_an_unencodable_value_leaves_nothing_behind() -> None:
    one = encoder()
    with pytest.raises(NotImplementedError):
        one.pack([Buffer(bytes(100)), object()])
    assert one.pack(1).views == ()


def test_a_message_beyond_all_bounds_is_told_to_use_a_buffer() -> None:
    with pytest.raises(ValueError, match="Buffer"):
        encoder().pack(bytes(MAX_SPILLED + 1))
    with pytest.raises(ValueError, match="Buffer"):
        Decoder(bytes).unpack(
            msgspec.Raw(b"\xc0"), [memoryview(bytes(MAX_SPILLED + 1))], spilled=True
        )


def test_values_are_checked_without_the_wire() -> None:
    peer = Identity.generate().peer_id
    parcel = Parcel("x", (), {}, peer)
    assert check(parcel, Parcel) is parcel
    assert check(peer, PeerId) is peer
    assert check(Buffer(b"x"), Buffer | None) == Buffer(b"x")
    for value, kind in [(b"x" * 32, PeerId), (b"x", Buffer), ("1", int), (None, Buffer)]:
        with pytest.raises(BadArgumentsError):
            check(value, kind)
