"""What a service class must look like, and how wrong ones are told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import pytest

from lattica.errors import BadArgumentsError, BadResultError
from lattica.identity import grants
from lattica.rpc import Buffer, method
from lattica.rpc.methods import MethodSpec, methods_of
from lattica.rpc.mismatch import explain


class Base:
    @method(scope=None)
    async def one(self, a: int, *, b: str = "b", c: list[int] | None = None) -> str:
        return f"{a}{b}{c}"

    @method(scope=grants.SUBMIT)
    async def items(self) -> AsyncGenerator[int, None]:
        yield 1

    async def hidden(self) -> None: ...


class Service(Base):
    @method()
    def plain(self, n: int) -> AsyncIterator[Buffer]:
        raise NotImplementedError


def spec(name: str) -> MethodSpec:
    return methods_of(Service)[name]


def test_marked_methods_and_no_others_with_their_scopes() -> None:
    specs = methods_of(Service)
    assert {name: spec.offer.scope for name, spec in specs.items()} == {
        "one": None,
        "items": grants.SUBMIT,
        "plain": grants.CALL,
    }
    assert [spec.is_stream for spec in specs.values()] == [True, False, True]
    assert specs["plain"].result_type is Buffer


async def call(self: object, **kwargs: Any) -> Any:
    return kwargs


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((1,), {"b": "x"}), ((), {"c": [1, 2], "a": 3, "b": "y"}), ((4,), {"c": None})],
)
def test_arguments_bind_as_python_binds_them(args: Any, kwargs: Any) -> None:
    def plain(a: int, *, b: str = "b", c: list[int] | None = None) -> tuple[Any, ...]:
        return a, b, c

    one = spec("one")
    assert one.invoke(plain, one.bind(args, kwargs)) == plain(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "-> str: missing a required argument: 'a'"),
        ((1, "b"), {}, "-> str: too many positional"),
        ((1,), {"d": 1}, "-> str: got an unexpected keyword argument 'd'"),
        (
            ("1",),
            {},
            "one(a: int, *, b: str = 'b', c: list[int] | None = None) -> str: argument a: "
            "Expected `int`, got `str`",
        ),
        ((1,), {"c": [1, "2"]}, "-> str: argument c[1]: Expected `int`, got `str`"),
    ],
)
def test_wrong_arguments_are_named(args: Any, kwargs: Any, says: str) -> None:
    with pytest.raises(BadArgumentsError, match="one") as caught:
        spec("one").bind(args, kwargs)
    assert says in str(caught.value)


def test_wrong_results_are_named() -> None:
    with pytest.raises(BadResultError, match=r"one.*returned"):
        spec("one").check_result(1)
    with pytest.raises(BadResultError, match=r"items.*yielded"):
        spec("items").check_result("x")


class NoHint:
    @method()
    async def bad(self, a) -> int:  # type: ignore[no-untyped-def]
        return 1


class NoReturn:
    @method()
    async def bad(self, a: int):  # type: ignore[no-untyped-def]
        return 1


class Star:
    @method()
    async def bad(self, *a: int) -> int:
        return 1


class NotAsync:
    @method()
    def bad(self) -> int:
        return 1


class AsyncInThread:
    @method(run_in="thread")
    async def bad(self) -> int:
        return 1


class ItemsOfProcess:
    @staticmethod
    @method(run_in="process")
    def bad() -> Iterator[int]:
        yield 1


class Missing:
    @method()
    async def bad(self) -> Nowhere:  # type: ignore[name-defined] # noqa: F821
        return 1


class Nothing:
    async def bad(self) -> None: ...


@pytest.mark.parametrize(
    "service", [NoHint, NoReturn, Star, NotAsync, AsyncInThread, ItemsOfProcess, Missing, Nothing]
)
def test_classes_that_cannot_be_served_say_why(service: type[Any]) -> None:
    with pytest.raises(TypeError, match=service.__name__):
        methods_of(service)


def test_the_cure_is_named() -> None:
    with pytest.raises(TypeError, match='run_in="thread"'):
        methods_of(NotAsync)
    with pytest.raises(TypeError, match="leave out run_in"):
        methods_of(AsyncInThread)


class Plain:
    @method(run_in="thread")
    def blocking(self, a: int, *, b: str = "b") -> str:
        return f"{a}{b}"

    @method(run_in="thread")
    def items(self) -> Iterator[int]:
        yield 1

    @staticmethod
    @method(run_in="process", idempotent=True)
    def still(a: int) -> int:
        return a

    @classmethod
    @method(run_in="process", max_concurrency=3, max_queue=0)
    def of_class(cls, a: int) -> int:
        return a


def test_plain_functions_static_and_class_methods() -> None:
    specs = methods_of(Plain)
    assert {name: list(spec.signature.parameters) for name, spec in specs.items()} == {
        "blocking": ["a", "b"],
        "items": [],
        "still": ["a"],
        "of_class": ["a"],
    }
    assert [name for name, spec in specs.items() if spec.is_stream] == ["items"]
    assert specs["items"].result_type is int
    assert specs["still"].offer.idempotent
    assert (specs["of_class"].offer.max_concurrency, specs["of_class"].offer.max_queue) == (3, 0)
    blocking = specs["blocking"]
    assert blocking.unbind(blocking.bind((1,), {"b": "c"})) == ([1], {"b": "c"})


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        ({"max_concurrency": 0}, "at least 1"),
        ({"max_queue": -1}, "at least 0"),
        ({"run_in": "moon"}, "'moon'"),
    ],
)
def test_offers_that_make_no_sense(offer: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        method(**offer)


def test_a_buffer_names_its_cure() -> None:
    class Raw:
        @method()
        async def put(self, data: Buffer) -> None: ...

    with pytest.raises(BadArgumentsError, match="argument data: expected Buffer, not bytes: wrap"):
        methods_of(Raw)["put"].bind((b"raw",), {})


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (
            "Expected `int`, got `str` - at `$[1].x[2]`",
            "argument b.x[2]: Expected `int`, got `str`",
        ),
        ("Expected `int`, got `str` - at `$[7]`", "Expected `int`, got `str` - at `$[7]`"),
        (
            "Expected `array` of at least length 2, got 1",
            "it takes 2 arguments here, and 1 came: the caller has another version of the service",
        ),
        (
            "Expected `array` of at most length 3, got 4",
            "Expected `array` of at most length 3, got 4",
        ),
        ("a buffer that was not sent", "a buffer that was not sent"),
    ],
)
def test_problems_are_told_in_the_words_of_the_method(problem: str, says: str) -> None:
    assert explain(problem, ("a", "b")) == says
