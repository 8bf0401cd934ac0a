from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import lattica
from lattica.actors.messages import ActorSpec, TaskSpec
from lattica.errors import (
    ActorsError,
    GetTimeoutError,
    NameTakenError,
    NoSuchActorError,
    NotInitializedError,
    SerializationError,
    TaskError,
)
from tests.actors.fake_core import FakeCore, fake_session


@pytest.fixture
def core() -> Iterator[FakeCore]:
    with fake_session() as made:
        yield made


@lattica.remote
def square(x: int) -> int:
    """Squares."""
    return x * x


@lattica.remote(num_cpus=2, resources={"tpu": 1}, num_returns=2)
def pair(a: int, *, b: int = 2) -> tuple[int, int]:
    return a, b


@lattica.remote
def fails() -> None:
    raise KeyError("missing")


@lattica.remote
def counts(n: int) -> Iterator[int]:
    yield from range(n)


@lattica.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self, k: int = 1) -> int:
        self.total += k
        return self.total

    def two(self) -> tuple[int, int]:
        return 1, 2

    @staticmethod
    def fixed(x: int) -> int:
        return x

    async def slow(self) -> str:
        return "slow"

    def up(self) -> Iterator[int]:
        yield from range(3)


def factorial(n: int) -> Any:
    return 1 if n < 2 else (n, remote_factorial)


remote_factorial = lattica.remote(factorial)


def test_get_of_one_of_many_and_of_none(core: FakeCore) -> None:
    assert lattica.get(square.remote(3)) == 9
    assert lattica.get([square.remote(i) for i in range(4)]) == [0, 1, 4, 9]
    assert lattica.get([]) == []


def test_put_and_top_level_refs(core: FakeCore) -> None:
    assert lattica.get(square.remote(lattica.put(12))) == 144
    assert lattica.get(square.remote(x=square.remote(2))) == 16


def test_wait_splits_in_the_order_given(core: FakeCore) -> None:
    refs = [square.remote(i) for i in range(3)]
    ready, rest = lattica.wait(refs, num_returns=2, timeout=1)
    assert (ready, rest) == (refs[:2], refs[2:])
    assert lattica.wait(refs) == (refs[:1], refs[1:])


def test_the_wrong_thing_to_get_or_wait_for_is_said_plainly(core: FakeCore) -> None:
    ref = square.remote(1)
    with pytest.raises(TypeError, match=r"lattica.get\(\) takes ObjectRefs, not an int"):
        lattica.get(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="number 2 is a str"):
        lattica.get([ref, "x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="twice"):
        lattica.wait([ref, ref])
    with pytest.raises(ValueError, match="num_returns=2"):
        lattica.wait([ref], num_returns=2)
    with pytest.raises(TypeError, match="iterate over the ObjectRefGenerator"):
        lattica.get(counts.remote(2))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not an ObjectRef"):
        lattica.put(ref)
    with pytest.raises(TypeError, match="takes an actor handle"):
        lattica.kill(ref)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one character"):
        lattica.get_actor("")


def test_a_timeout_is_both_lattica_s_and_python_s(core: FakeCore) -> None:
    never = lattica.ObjectRef(lattica.put(1).id.__class__(core.owner, b"n" * 16))
    with pytest.raises(GetTimeoutError) as caught:
        lattica.get(never, timeout=0.01)
    assert isinstance(caught.value, TimeoutError)


def test_arguments_are_checked_where_the_call_is_made(core: FakeCore) -> None:
    with pytest.raises(TypeError, match=r"square\(\): missing a required argument: 'x'"):
        square.remote()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"pair\(\): .*unexpected keyword argument 'c'"):
        pair.remote(1, c=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Counter\(\): too many positional"):
        Counter.remote(1, 2)
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"Counter.add\(\): too many positional"):
        counter.add.remote(1, 2)
    with pytest.raises(AttributeError, match="Counter has no method 'subtract'; it has add"):
        _ = counter.subtract
    assert not [spec for spec in core.specs if isinstance(spec, TaskSpec)]


def test_an_unpicklable_argument_is_named_where_the_call_is_made(core: FakeCore) -> None:
    with pytest.raises(SerializationError, match=r"argument 'x' of square\(\) is a generator"):
        square.remote(i for i in range(3))  # type: ignore[arg-type]


def test_a_direct_call_says_what_to_do(core: FakeCore) -> None:
    with pytest.raises(TypeError, match=r"square.remote\(...\)"):
        square(3)
    with pytest.raises(TypeError, match=r"Counter.remote\(...\)"):
        Counter(3)
    with pytest.raises(TypeError, match=r".add.remote\(...\)"):
        Counter.remote().add(1)
    assert square.__wrapped__(3) == 9


def test_an_actor_class_cannot_be_inherited_from() -> None:
    with pytest.raises(TypeError, match="inherit from the plain class"):

        class Sub(Counter):  # type: ignore[misc, valid-type]
            pass


def test_options_reach_the_spec_and_leave_the_original_alone(core: FakeCore) -> None:
    first, second = pair.options(num_cpus=0.5, labels={"zone": "a"}).remote(1)
    assert lattica.get([first, second]) == [1, 2]
    spec = core.specs[-1]
    assert isinstance(spec, TaskSpec)
    needs = spec.requirements
    assert (needs.cpus, needs.resources, needs.labels) == (0.5, {"tpu": 1.0}, {"zone": "a"})
    lattica.get(pair.remote(1))
    spec = core.specs[-1]
    assert isinstance(spec, TaskSpec)
    assert spec.requirements.cpus == 2.0
    assert spec.max_retries == 0


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"num_cpu": 1}, "no option 'num_cpu'; it has labels"),
        ({"num_cpus": "1"}, "num_cpus is a number"),
        ({"num_cpus": -1}, "from 0 on"),
        ({"num_cpus": float("nan")}, "finite"),
        ({"max_restarts": 1}, "no option 'max_restarts'"),
        ({"max_retries": -2}, "from -1 on"),
        ({"resources": {"CPU": 1}}, "use num_cpus"),
        ({"labels": {"a": 1}}, "is a string"),
        ({"num_returns": "many"}, "num_returns is a whole number"),
        ({"peer": "nonsense"}, "peer"),
    ],
)
def test_a_bad_option_is_told(option: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        square.options(**option)


def test_remote_takes_functions_and_classes_only() -> None:
    with pytest.raises(TypeError, match="a function or a class, not 3"):
        lattica.remote(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="is remote already"):
        lattica.remote(square)


def test_names_and_docs_are_kept() -> None:
    assert square.__name__ == "square"
    assert square.__doc__ == "Squares."
    assert repr(square) == "<remote function tests.actors.test_api.square>"
    assert "actor class" in repr(Counter)


def test_the_code_of_a_function_is_pickled_once(core: FakeCore) -> None:
    lattica.get([square.remote(1), square.options(num_cpus=0).remote(2)])
    specs = [spec for spec in core.specs if isinstance(spec, TaskSpec)]
    assert specs[0].function is specs[1].function


def test_a_recursive_remote_function_pickles(core: FakeCore) -> None:
    number, function = lattica.get(remote_factorial.remote(3))
    assert number == 3
    assert function.__name__ == "factorial"
    assert lattica.get(function.remote(1)) == 1


def test_actors_keep_state_and_know_their_kinds_of_method(core: FakeCore) -> None:
    counter = Counter.remote(40)
    assert lattica.get([counter.add.remote(), counter.add.remote(2)]) == [41, 43]
    assert lattica.get(counter.fixed.remote(7)) == 7
    one, two = counter.two.options(num_returns=2).remote()
    assert lattica.get([one, two]) == [1, 2]
    assert [lattica.get(ref) for ref in counter.up.remote()] == [0, 1, 2]
    spec = core.specs[0]
    assert isinstance(spec, ActorSpec)
    assert spec.methods == {
        "add": "call",
        "fixed": "call",
        "slow": "async",
        "two": "call",
        "up": "stream",
    }
    assert spec.requirements.cpus == 0.0


def test_handles_travel_and_are_found_by_name(core: FakeCore) -> None:
    counter = Counter.options(name="hits").remote(1)
    assert lattica.get(counter.add.remote()) == 2
    [same] = lattica.get(lattica.put([counter]))
    assert same == counter
    assert lattica.get(same.add.remote()) == 3
    found = lattica.get_actor("hits")
    assert found == counter
    with pytest.raises(TypeError, match="too many positional"):
        found.add.remote(1, 2)
    with pytest.raises(NameTakenError, match="'hits'"):
        Counter.options(name="hits").remote()
    with pytest.raises(NoSuchActorError):
        lattica.get_actor("nobody")


def test_an_unnamed_actor_is_dropped_with_its_only_handle_unless_that_was_shared(
    core: FakeCore,
) -> None:
    alone, shared, named = Counter.remote(), Counter.remote(), Counter.options(name="n").remote()
    ref = lattica.put([shared])
    alone_id = alone._info.actor
    del alone, shared, named
    gc.collect()
    lattica.get(ref)
    assert core.dropped == [alone_id]


def test_refs_are_counted_from_birth_to_death(core: FakeCore) -> None:
    ref = square.remote(3)
    alias = ref
    other = lattica.get(lattica.put([ref]))[0]
    assert other == ref
    assert hash(other) == hash(ref)
    lattica.get(ref)
    held = core.refs[ref.id]
    object_id = ref.id
    del ref, alias, other
    gc.collect()
    lattica.get(square.remote(1))  # what was posted before has been carried out
    assert core.refs[object_id] == held - 2


def test_an_error_is_both_the_users_class_and_a_task_error(core: FakeCore) -> None:
    with pytest.raises(KeyError) as caught:
        lattica.get(fails.remote())
    assert isinstance(caught.value, TaskError)
    assert caught.value.peer_name == "fake"
    assert "KeyError on fake: 'missing'" in str(caught.value)
    assert "remote traceback" in str(caught.value)


def test_streams_are_iterated_both_ways(core: FakeCore) -> None:
    assert [lattica.get(ref) for ref in counts.remote(3)] == [0, 1, 2]

    async def collect() -> list[int]:
        return [await ref async for ref in counts.remote(3)]

    assert asyncio.run(collect()) == [0, 1, 2]


def test_everything_can_be_awaited_from_the_users_own_loop(core: FakeCore) -> None:
    async def program() -> list[Any]:
        counter = Counter.remote(1)
        return list(await asyncio.gather(square.remote(3), counter.add.remote(), square.remote(4)))

    assert asyncio.run(program()) == [9, 2, 16]


def test_a_future_for_other_threads(core: FakeCore) -> None:
    assert square.remote(5).future().result(5) == 25


def test_a_blocking_call_on_latticas_own_loop_is_refused(core: FakeCore) -> None:
    from lattica.actors.context import current

    ref = square.remote(1)

    async def blocks() -> Any:
        return lattica.get(ref)

    with pytest.raises(ActorsError, match="`await ref`"):
        current().run(blocks)


def test_kill_and_cancel_reach_the_core(core: FakeCore) -> None:
    counter, ref = Counter.remote(), square.remote(1)
    lattica.kill(counter, no_restart=False)
    lattica.cancel(ref, force=True)
    assert core.killed == [(counter._info.actor, False)]
    assert core.cancelled == [(ref.id, True)]


def test_resources_are_summed_over_the_nodes(core: FakeCore) -> None:
    assert [node.name for node in lattica.nodes()] == ["one", "two"]
    assert lattica.cluster_resources() == {"CPU": 8.0, "memory": 200.0}
    assert lattica.available_resources() == {"CPU": 4.0, "memory": 100.0}


def test_large_arguments_become_objects_so_that_call_frames_stay_small(core: FakeCore) -> None:
    counter = Counter.remote()
    assert lattica.get(counter.fixed.remote("x" * 10**6)) == "x" * 10**6
    call = core.specs[-1]
    assert call.args.nbytes < 200
    assert len(call.arg_refs) == 1


def test_without_init_everything_says_so() -> None:
    for call in (square.remote, Counter.remote, lambda _: lattica.get([]), lattica.put):
        with pytest.raises(NotInitializedError, match=r"lattica.init\(\)"):
            call(1)
    assert not lattica.is_initialized()
    lattica.shutdown()  # nothing to do


def test_a_context_that_closes_ends_those_who_wait(core: FakeCore) -> None:
    import threading

    from lattica.actors.context import current

    never = lattica.ObjectRef(square.remote(1).id.__class__(core.owner, b"n" * 16))
    context = current()
    timer = threading.Timer(0.1, context.close)
    timer.start()
    with pytest.raises(NotInitializedError, match="shut down"):
        lattica.get(never)
    timer.join()


def test_import_brings_what_it_needs_and_nothing_heavy() -> None:
    # How long it takes is a row of `bench`; what makes it slow is what it brings along.
    code = (
        "import sys; import lattica; lattica.remote, lattica.ObjectRef\n"
        "assert 'init' in dir(lattica)\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    brought = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    heavy = {"torch", "transformers", "numpy", "aioquic", "qh3", "kademlia", "pycrdt", "anyio"}
    heavy.add("cryptography.x509")
    assert "lattica" in brought
    assert not heavy & set(brought)


def test_every_public_name_is_there() -> None:
    for name in lattica.__all__:
        assert getattr(lattica, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lattica.nonsense
