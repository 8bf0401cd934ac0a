"""Raw bytes beside a message: the out-of-band part of a call, a result or an item."""

from __future__ import annotations

import sys
from pickle import PickleBuffer
from typing import Any


class Buffer:
    """Bytes that travel beside a MessagePack message instead of inside it.

    May stand anywhere in a method's arguments, result or items. Small ones share the
    control message's packet; larger ones take a QUIC stream of their own.
    """

    __slots__ = ("data",)

    data: memoryview

    def __init__(self, data: Any) -> None:
        """`data` is bytes, a NumPy array, a CPU tensor of torch, or has a buffer otherwise.

        It is not copied: it must stay as it is until it has been sent. Types and shapes do
        not travel; `numpy.frombuffer(buffer.data, dtype)` gives an array of what arrived.

        Raises:
            TypeError: it has no buffer that this process can read.
            ValueError: its bytes do not lie in one piece and in C order. No copy is made
                silently: `numpy.ascontiguousarray` and `Tensor.contiguous` make one.
        """
        if type(data) is bytes:
            self.data = memoryview(data)
            return
        view = memoryview(_of_tensor(data) if hasattr(data, "data_ptr") else data)
        if view.format == "B" and view.ndim == 1 and view.contiguous:
            self.data = view
        elif not view.c_contiguous:
            raise ValueError(
                f"the bytes of this {type(data).__name__} do not lie in one piece in C order: "
                "pass numpy.ascontiguousarray(array) or tensor.contiguous(), which copy it once"
            )
        else:
            self.data = PickleBuffer(view).raw()  # whatever its format, which cast() may not know

    def __len__(self) -> int:
        return self.data.nbytes

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Buffer) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Buffer], tuple[bytes]]:
        """To a process of ours: a view cannot be pickled."""
        return Buffer, (bytes(self.data),)

    def __repr__(self) -> str:
        return f"Buffer({self.data.nbytes} bytes)"


def _of_tensor(tensor: Any) -> Any:
    """A tensor's bytes as an array: NumPy has no bfloat16, so no element type is kept."""
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise TypeError(f"a tensor on {tensor.device} has no buffer here: pass tensor.cpu()")
    if not tensor.is_contiguous():
        raise ValueError(
            "the bytes of this Tensor do not lie in one piece in C order: "
            "pass tensor.contiguous(), which copies it once"
        )
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()
