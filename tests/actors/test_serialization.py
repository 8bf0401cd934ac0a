from __future__ import annotations

import importlib
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from lattica.actors import pickling, serialization
from lattica.actors.messages import ObjectId, Value
from lattica.actors.refs import ObjectRef
from lattica.errors import SerializationError
from lattica.rpc.buffers import Buffer
from tests.actors.fake_core import FakeCore, fake_session


@pytest.fixture
def core() -> Any:
    with fake_session() as made:
        yield made


class Holder:
    def __init__(self, part: Any) -> None:
        self.inner = [part]


def test_plain_values_and_containers_come_back_equal() -> None:
    for value in (None, 1, "x", b"y", 1.5, [1, {"a": (2, 3)}], {1, 2}):
        assert serialization.loads(serialization.dumps(value)) == value


def test_large_arrays_travel_out_of_band_and_small_ones_inside() -> None:
    large, small = np.arange(10_000.0), np.arange(10.0)
    value = serialization.dumps({"large": large, "small": small})
    assert [len(buffer) for buffer in value.buffers] == [large.nbytes]
    assert len(value.pickle) < 1000
    loaded = serialization.loads(value)
    np.testing.assert_array_equal(loaded["large"], large)
    np.testing.assert_array_equal(loaded["small"], small)


def test_a_value_is_a_snapshot() -> None:
    array = np.zeros(10_000)
    value = serialization.dumps(array)
    array[0] = 7
    assert serialization.loads(value)[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_travel_out_of_band_in_their_dtype(dtype: torch.dtype) -> None:
    tensor = torch.randn(200, 101).to(dtype)
    value = serialization.dumps([tensor.t()])
    assert sum(len(buffer) for buffer in value.buffers) == tensor.numel() * tensor.itemsize
    [loaded] = serialization.loads(value)
    assert loaded.dtype == dtype
    assert torch.equal(loaded, tensor.t())
    loaded[0] = 0  # it may be written to


def test_parameters_and_empty_and_scalar_tensors() -> None:
    parameter = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    loaded = serialization.loads(serialization.dumps([parameter, torch.zeros(0), torch.tensor(2)]))
    assert type(loaded[0]) is torch.nn.Parameter
    assert not loaded[0].requires_grad
    assert loaded[1].shape == (0,)
    assert loaded[2].item() == 2


def test_refs_inside_a_value_are_noted_and_rebuilt(core: FakeCore) -> None:
    ref = ObjectRef(ObjectId(core.owner, b"k" * 16))
    value = serialization.dumps({"deep": [ref]})
    assert value.refs == (ref.id,)
    assert serialization.loads(value)["deep"][0] == ref


def test_top_level_refs_of_a_call_become_their_values(core: FakeCore) -> None:
    ref = ObjectRef(ObjectId(core.owner, b"k" * 16))
    args, refs = serialization.dump_call((1, ref), {"key": ref, "nested": [ref]}, "f()")
    assert refs == (ref.id, ref.id)
    values = [serialization.dumps("first"), serialization.dumps("second")]
    assert serialization.load_call(args, values) == (
        (1, "first"),
        {"key": "second", "nested": [ref]},
    )


def test_spilled_arguments_come_from_an_object_of_their_own(core: FakeCore) -> None:
    ref = ObjectRef(ObjectId(core.owner, b"k" * 16))
    whole, refs = serialization.dump_call((ref,), {"b": 2}, "f()")
    args = serialization.spill_call(len(refs))
    assert serialization.load_call(args, [serialization.dumps("value"), whole]) == (
        ("value",),
        {"b": 2},
    )


def test_an_unpicklable_argument_is_named_with_the_path_to_the_culprit() -> None:
    found = r"argument 'lock' of square\(\) holds a _thread.lock at .inner\[0\]"
    with pytest.raises(SerializationError, match=found):
        serialization.dump_call((1, Holder(threading.Lock())), {}, "square()", ("x", "lock"))
    with pytest.raises(SerializationError, match=r"argument 'k' of f\(\) is a _thread.lock"):
        serialization.dump_call((), {"k": threading.Lock()}, "f()")
    with pytest.raises(SerializationError, match=r"argument number 2 of f\(\) is a generator"):
        serialization.dump_call((1, (each for each in ())), {}, "f()")


def test_a_culprit_in_a_closure_a_global_or_a_dict_is_found() -> None:
    lock = threading.Lock()

    def closes_over() -> Any:
        return lock

    with pytest.raises(SerializationError, match="captured variable 'lock'"):
        serialization.dump_code(closes_over, "function closes_over()")
    with pytest.raises(SerializationError, match=r"\['a'\]\[1\]"):
        serialization.dumps({"a": [1, lock]}, "the result")


def test_a_cyclic_value_with_a_culprit_does_not_hang() -> None:
    cycle: list[Any] = [threading.Lock()]
    cycle.insert(0, cycle)
    with pytest.raises(SerializationError, match="_thread.lock"):
        serialization.dumps(cycle)


def test_a_ref_is_not_for_other_picklers(core: FakeCore) -> None:
    ref = ObjectRef(ObjectId(core.owner, b"k" * 16))
    with pytest.raises(SerializationError, match="by Lattica only"):
        pickle.dumps(ref)


def test_functions_and_classes_of_the_users_own_modules_go_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_module.py").write_text(
        "FACTOR = 3\n"
        "def helper(x):\n    return FACTOR * x\n"
        "def triple(x):\n    return helper(x)\n"
        "class Thing:\n    value = 5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("users_module")
    try:
        function = serialization.dump_code(module.triple, "triple()")
        thing = serialization.dumps(module.Thing())
        sys.modules.pop("users_module")
        monkeypatch.undo()  # as on a machine that has no such file
        assert serialization.load_code(function)(2) == 6
        assert serialization.loads(thing).value == 5
    finally:
        sys.modules["users_module"] = module
        cloudpickle.unregister_pickle_by_value(module)
        sys.modules.pop("users_module")


def test_installed_and_our_own_modules_go_by_reference() -> None:
    for name in ("json", "numpy", "msgspec", "lattica.errors", "cloudpickle"):
        assert not pickling.is_local_module(name)
    assert pickling.is_local_module(__name__)


class Local:
    def method(self) -> Any:
        return Local


def test_a_class_that_comes_back_home_is_the_same_and_unchanged() -> None:
    method = Local.method
    loaded = serialization.loads(serialization.dumps(Local()))
    assert type(loaded) is Local
    assert Local.method is method


def test_recursive_functions_by_value() -> None:
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    assert serialization.load_code(serialization.dump_code(factorial, "factorial()"))(5) == 120


def test_garbage_is_an_error_not_a_crash() -> None:
    with pytest.raises(Exception, match=".*"):
        serialization.loads(Value(Buffer(b"\x80\x05garbage")))
