"""What a service class must look like, and how wrong ones are told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from lattica.errors import BadArgumentsError, BadResultError
from lattica.identity import grants
from lattica.rpc import Buffer, method
from lattica.rpc.methods import MethodSpec, methods_of


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
        ((), {}, "missing a required argument: 'a'"),
        ((1, "b"), {}, "too many positional"),
        ((1,), {"d": 1}, "unexpected keyword argument 'd'"),
        (("1",), {}, "Expected `int`, got `str`"),
        ((1,), {"c": [1, "2"]}, "Expected `int`, got `str`"),
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


class Missing:
    @method()
    async def bad(self) -> Nowhere:  # type: ignore[name-defined] # noqa: F821
        return 1


class Nothing:
    async def bad(self) -> None: ...


@pytest.mark.parametrize("service", [NoHint, NoReturn, Star, NotAsync, Missing, Nothing])
def test_classes_that_cannot_be_served_say_why(service: type[Any]) -> None:
    with pytest.raises(TypeError, match=service.__name__):
        methods_of(service)
