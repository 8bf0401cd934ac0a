"""Retries are made where they are asked for, where they do no harm, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from lattica.errors import (
    BadArgumentsError,
    BusyError,
    CallLostError,
    DeadlineError,
    HandlerDiedError,
    LatticaError,
    LinkLostError,
    RemoteError,
    UnreachableError,
    WrongPeerError,
)
from lattica.rpc import Retry, method
from lattica.rpc.retry import may_be_retried, retried
from lattica.virtual_loop import VirtualLoop
from tests.rpc.mesh import Mesh, until

pytestmark = pytest.mark.anyio
BUSY = BusyError("later", retry_after=2.0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def now() -> float:
    return asyncio.get_running_loop().time()


def longest(least: float, most: float) -> float:
    """In place of a random number."""
    assert least == 0
    return most


class Script:
    """Attempts that end as written; `at` are the times they were made."""

    def __init__(self, *outcomes: LatticaError | str) -> None:
        self.outcomes: Iterator[LatticaError | str] = iter(outcomes)
        self.at: list[float] = []
        self.timeouts: list[float] = []

    async def __call__(self, timeout: float) -> str:
        self.at.append(now())
        self.timeouts.append(timeout)
        outcome = next(self.outcomes)
        if isinstance(outcome, str):
            return outcome
        raise outcome

    @property
    def waits(self) -> list[float]:
        return [round(after - before, 6) for before, after in zip(self.at, self.at[1:])]  # noqa: B905


async def run(script: Script, policy: Retry, *, idempotent: bool = False, left: float = 60) -> str:
    return await retried(
        script, policy, idempotent=idempotent, deadline=now() + left, spread=longest
    )


@pytest.mark.parametrize(
    ("error", "plain", "idempotent"),
    [
        (BUSY, True, True),
        (UnreachableError(""), True, True),
        (LinkLostError(""), True, True),
        (CallLostError("", may_have_run=False), True, True),
        (CallLostError("", may_have_run=True), False, True),
        (HandlerDiedError(""), False, True),
        (DeadlineError(""), False, False),
        (RemoteError("b", "ValueError", ""), False, False),
        (BadArgumentsError(""), False, False),
        (WrongPeerError(""), False, False),
    ],
)
def test_which_errors_are_worth_another_attempt(
    error: LatticaError, plain: bool, idempotent: bool
) -> None:
    assert may_be_retried(error, idempotent=False) is plain
    assert may_be_retried(error, idempotent=True) is idempotent


async def test_waits_double_up_to_the_longest() -> None:
    script = Script(*[UnreachableError("gone")] * 6, "done")
    policy = Retry(attempts=7, first_wait=0.1, longest_wait=1.0)
    assert await run(script, policy) == "done"
    assert script.waits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert script.timeouts == pytest.approx([60, 59.9, 59.7, 59.3, 58.5, 57.5, 56.5])


async def test_waits_are_drawn_from_the_whole_range() -> None:
    drawn = []
    for _ in range(200):
        script = Script(UnreachableError("gone"), "done")
        await retried(script, Retry(first_wait=1.0), idempotent=False, deadline=now() + 60)
        drawn += script.waits
    assert all(0 <= wait <= 1 for wait in drawn)
    assert min(drawn) < 0.2 < 0.8 < max(drawn)


async def test_a_busy_peer_is_left_alone_as_long_as_it_says() -> None:
    script = Script(BUSY, BUSY, "done")
    assert await run(script, Retry(first_wait=0.1)) == "done"
    assert script.waits == [2.1, 2.2]


async def told(script: Script, policy: Retry, **kwargs: float) -> str:
    with pytest.raises(LatticaError) as caught:
        await run(script, policy, **kwargs)  # type: ignore[arg-type]
    (note,) = caught.value.__notes__
    return note


async def test_the_notes_tell_how_many_attempts_were_made_and_why_no_more() -> None:
    gone = [UnreachableError("gone") for _ in range(3)]
    assert await told(Script(*gone), Retry()) == (
        "attempt 3 of 3, the last: no more were asked for; before it: UnreachableError, "
        "UnreachableError"
    )
    lost = CallLostError("lost", may_have_run=True)
    assert "attempt 2 of 3" in (note := await told(Script(gone[0], lost), Retry()))
    assert "not declared idempotent" in note
    busy = BusyError("", retry_after=61.0)
    assert "busy for 61 s" in await told(Script(busy), Retry(), left=1000)
    assert "the deadline leaves no time" in await told(
        Script(BusyError("", retry_after=5.0)), Retry(), left=5.0
    )
    assert "not retried" in await told(Script(DeadlineError("late")), Retry())


def test_a_policy_makes_an_attempt() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Retry(attempts=0)


# -------------------------------------------------------------- over a mesh


class Flaky:
    def __init__(self) -> None:
        self.calls = 0
        self.hanging = 2  # so many calls take until they are released
        self.release = asyncio.Event()

    @method(max_concurrency=1, max_queue=0)
    async def single(self) -> str:
        self.calls += 1
        await self.release.wait()
        return "done"

    @method(idempotent=True)
    async def safe(self) -> int:
        return await self._slow()

    @method()
    async def unsafe(self) -> int:
        return await self._slow()

    async def _slow(self) -> int:
        self.calls += 1
        calls = self.calls
        if calls <= self.hanging:
            await self.release.wait()
        return calls


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh() as mesh:
        yield mesh


@pytest.fixture
def flaky(mesh: Mesh) -> Flaky:
    flaky = Flaky()
    mesh.b.register("flaky", flaky)
    return flaky


@pytest.mark.parametrize("where", ["link", "local"])
async def test_a_busy_method_is_called_again(mesh: Mesh, flaky: Flaky, where: str) -> None:
    rpc = mesh.a if where == "link" else mesh.b
    first = asyncio.create_task(rpc.client(mesh.b.local, Flaky, "flaky").single())
    await until(lambda: flaky.calls == 1)
    asyncio.get_running_loop().call_later(1.0, flaky.release.set)
    patient = rpc.client(mesh.b.local, Flaky, "flaky", retries=Retry(attempts=100))
    assert await patient.single() == "done"
    assert await first == "done"
    assert mesh.b.counters["refused:busy"] >= 2


async def test_none_is_made_unless_it_is_asked_for(mesh: Mesh, flaky: Flaky) -> None:
    task = asyncio.create_task(mesh.a.client(mesh.b.local, Flaky, "flaky").safe())
    await until(lambda: flaky.calls == 1)
    mesh.network.partition(mesh.a.local, mesh.b.local)
    with pytest.raises(CallLostError) as caught:
        await task
    assert not hasattr(caught.value, "__notes__")
    assert flaky.calls == 1


async def test_a_lost_link_is_survived_by_what_is_idempotent_only(mesh: Mesh, flaky: Flaky) -> None:
    stub = mesh.a.client(mesh.b.local, Flaky, "flaky", retries=20)
    tasks = [asyncio.create_task(stub.safe()), asyncio.create_task(stub.unsafe())]
    await until(lambda: flaky.calls == 2)
    mesh.network.partition(mesh.a.local, mesh.b.local)
    asyncio.get_running_loop().call_later(1.0, mesh.network.heal, mesh.a.local, mesh.b.local)
    again, failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert again == 3
    assert isinstance(failed, CallLostError)
    assert "not declared idempotent" in failed.__notes__[0]
    assert flaky.calls == 3


async def test_a_peer_that_comes_back_is_reached(mesh: Mesh, flaky: Flaky) -> None:
    mesh.network.partition(mesh.a.local, mesh.b.local)
    asyncio.get_running_loop().call_later(1.0, mesh.network.heal, mesh.a.local, mesh.b.local)
    flaky.hanging = 0
    stub = mesh.a.client(mesh.b.local, Flaky, "flaky", retries=20)
    results = await asyncio.gather(*(stub.unsafe() for _ in range(50)))
    assert sorted(results) == list(range(1, 51)), "each ran once"


async def test_each_caller_has_notes_of_its_own(mesh: Mesh, flaky: Flaky) -> None:
    mesh.network.partition(mesh.a.local, mesh.b.local)
    stub = mesh.a.client(mesh.b.local, Flaky, "flaky", retries=2)
    outcomes = await asyncio.gather(*(stub.safe() for _ in range(5)), return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, UnreachableError)
        assert [note[:14] for note in outcome.__notes__] == ["attempt 3 of 3"]
    assert len({id(outcome) for outcome in outcomes}) == 5


async def test_all_attempts_together_keep_to_the_deadline(mesh: Mesh, flaky: Flaky) -> None:
    mesh.network.partition(mesh.a.local, mesh.b.local)
    start = now()
    stub = mesh.a.client(mesh.b.local, Flaky, "flaky", timeout=3.0, retries=1000)
    with pytest.raises(LatticaError):
        await stub.safe()
    assert now() - start <= 3.05


async def test_a_retry_can_be_cancelled(mesh: Mesh, flaky: Flaky) -> None:
    mesh.network.partition(mesh.a.local, mesh.b.local)
    policy = Retry(attempts=1000, first_wait=1000.0, longest_wait=1000.0)
    stub = mesh.a.client(mesh.b.local, Flaky, "flaky", timeout=10_000_000.0, retries=policy)
    task = asyncio.create_task(stub.safe())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert flaky.calls == 0
