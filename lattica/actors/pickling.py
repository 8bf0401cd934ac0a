"""The pickler: cloudpickle, protocol 5, large buffers out of band, refs taken note of.

What other machines cannot import goes by value: `__main__`, and every module that is
neither the standard library's, nor installed, nor Lattica's own.
"""

from __future__ import annotations

import io
import pickle
import site
import sys
import sysconfig
import types
from functools import lru_cache
from pathlib import Path
from typing import Any

import cloudpickle

from lattica.actors.messages import ObjectId, Value
from lattica.actors.refs import ObjectRef
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer

OUT_OF_BAND = 16 * 1024  # bytes; smaller buffers stay inside the pickle

_SHIPPED = frozenset({"lattica", "serving"})  # the packages of our own distribution
_STDLIB = frozenset(sys.stdlib_module_names)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles one value; afterwards `buffers` and `refs` hold what stands beside it."""

    def __init__(self, file: io.BytesIO, *, out_of_band: bool) -> None:
        super().__init__(
            file, protocol=5, buffer_callback=self._take_buffer if out_of_band else None
        )
        self.buffers: list[Buffer] = []
        self.refs: list[ObjectId] = []

    def reducer_override(self, obj: Any) -> Any:
        """Called by the pickler for every object that is not of a basic builtin type."""
        kind = type(obj)
        if kind is ObjectRef:
            self.refs.append(obj.id)
            return _load_ref, (obj.id.owner.raw, obj.id.key)
        if kind.__module__ == "torch" or kind.__module__.startswith("torch.nn.parameter"):
            reduced = _reduce_tensor(obj)
            if reduced is not None:
                return reduced
        if isinstance(obj, (types.FunctionType, type, types.ModuleType)):
            _by_value_if_local(obj)
        return super().reducer_override(obj)

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND:
            return True  # in band
        # A copy: the caller may change its array as soon as the remote call is submitted.
        self.buffers.append(Buffer(bytes(raw)))
        return False


class Unpickler(pickle.Unpickler):
    """Unpickles, but leaves classes that this process defines itself as they are."""

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name)
        return _set_class_state if name == "_class_setstate" else found


def dump(obj: Any, *, out_of_band: bool = True) -> Value:
    """Pickle `obj`; raises whatever pickling raises."""
    file = io.BytesIO()
    pickler = Pickler(file, out_of_band=out_of_band)
    pickler.dump(obj)
    return Value(Buffer(file.getvalue()), tuple(pickler.buffers), tuple(pickler.refs))


def load(value: Value) -> Any:
    """Unpickle a value. Runs code: only for values of peers with the mesh's grant."""
    data = value.pickle.data
    buffers = [buffer.data for buffer in value.buffers]
    if b"_class_setstate" in bytes(data):
        return Unpickler(io.BytesIO(data), buffers=buffers).load()
    return pickle.loads(data, buffers=buffers)  # noqa: S301 - the grant was checked below


def _load_ref(owner: bytes, key: bytes) -> ObjectRef:
    return ObjectRef(ObjectId(PeerId(owner), key))


def _set_class_state(cls: type, state: Any) -> Any:
    # cloudpickle finds the class that this process sent away by its tracker id, and would
    # then overwrite its methods with copies that see a stale copy of the module's globals.
    home: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        home = getattr(home, part, None)
    if home is cls:
        return cls
    return cloudpickle.cloudpickle._class_setstate(cls, state)


def _by_value_if_local(obj: Any) -> None:
    name = obj.__name__ if isinstance(obj, types.ModuleType) else obj.__module__
    if isinstance(name, str) and name != "__main__" and is_local_module(name):
        cloudpickle.register_pickle_by_value(sys.modules[name])


def is_local_module(name: str) -> bool:
    """Whether a module is the user's own, which other machines need not have."""
    top = name.partition(".")[0]
    if top in _STDLIB or top in _SHIPPED or name not in sys.modules:
        return False
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and file.endswith(".py") and not _is_installed(file)


@lru_cache(maxsize=4096)
def _is_installed(file: str) -> bool:
    path = Path(file).resolve()
    return any(path.is_relative_to(root) for root in _installed_roots())


@lru_cache(maxsize=1)
def _installed_roots() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    roots = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(root).resolve() for root in roots})


def _reduce_tensor(tensor: Any) -> Any:
    """torch pickles a tensor's bytes in band, by way of a zip file; numpy's go out of band."""
    torch = sys.modules["torch"]
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    if tensor.dtype.is_complex or tensor.is_conj() or tensor.is_neg() or not tensor.numel():
        return None
    plain = tensor.detach().contiguous()
    data = plain.flatten().view(torch.uint8).numpy()
    is_parameter = type(tensor) is torch.nn.Parameter
    return _load_tensor, (
        pickle.PickleBuffer(data),
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
        tensor.requires_grad,
        is_parameter,
    )


def _load_tensor(
    data: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool, is_parameter: bool
) -> Any:
    import importlib

    torch = importlib.import_module("torch")
    # torch tensors have no read-only form: a copy keeps the stored value as it is.
    tensor = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)
