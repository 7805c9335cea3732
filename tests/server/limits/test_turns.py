"""Who is next at what there are few of."""

from __future__ import annotations

import asyncio

import pytest

from fluxserve.errors import QueueFull
from fluxserve.server.limits.turns import Room, Turns

pytestmark = pytest.mark.anyio
ROOM = Room(8, 1000, 0.2, "full")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.fault(117)
async def test_one_client_never_holds_all_and_who_holds_fewest_is_next() -> None:
    turns, order = Turns(range(4), 3, ROOM), list[str]()

    async def ask(client: str) -> int:
        thing = await turns.take(client)
        order.append(client)
        return thing

    asked = [asyncio.create_task(ask("greedy")) for _ in range(6)]
    await settle()
    assert order == ["greedy"] * 3
    asked += [asyncio.create_task(ask(client)) for client in ("greedy", "late", "latest", "late")]
    await settle()
    assert order[3:] == ["late"]
    turns.give_back(asked[0].result(), "greedy")
    await settle()
    assert order[4:] == ["latest"], "who holds none goes before who holds some"
    turns.give_back(asked[7].result(), "late")
    await settle()
    assert order[5:] == ["late"]
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.fault(117)
async def test_half_of_the_room_is_for_others_and_a_place_is_given_up_in_time() -> None:
    turns = Turns(range(1), 1, ROOM)
    assert await turns.take("greedy") == 0
    waiting = [asyncio.create_task(turns.take("greedy", 10)) for _ in range(4)]
    await settle()
    with pytest.raises(QueueFull, match="full") as refusal:
        await turns.take("greedy", 10)
    assert (refusal.value.retry_after_s or 0) >= 1
    other = asyncio.create_task(turns.take("other", 500))
    await settle()
    with pytest.raises(QueueFull):
        await turns.take("third", 900)
    turns.give_back(0, "greedy")
    assert await other == 0
    assert all(isinstance(error, QueueFull) for error in await asyncio.gather(*waiting, return_exceptions=True))
    turns.give_back(0, "other")
    assert await turns.take("greedy") == 0


@pytest.mark.fault(117)
async def test_many_clients_together_leave_places_and_things_to_one_who_has_none() -> None:
    turns = Turns(range(8), 3, ROOM)
    held = [asyncio.create_task(turns.take(client)) for client in "aaabbbcc"]
    await settle()
    assert sum(task.done() for task in held) == 7, "two are kept: for c, who then had none, and for one more"
    waiting = [asyncio.create_task(turns.take(client)) for client in "aaabbbc"]
    await settle()
    assert (await asyncio.wait_for(turns.take("honest"), 1)) in range(8)
    late = asyncio.create_task(turns.take("honest"))
    await settle()
    refused = [task for task in waiting if task.done()]
    assert len(refused) == 1, "the room was full: one of those who wait with most gave way"
    with pytest.raises(QueueFull, match="full"):
        await refused[0]
    assert not late.done()
    for task in (*held, *waiting, late):
        task.cancel()
    await asyncio.gather(*held, *waiting, late, return_exceptions=True)


@pytest.mark.fault(117)
async def test_one_large_request_takes_nobodys_place() -> None:
    turns = Turns(range(1), 1, ROOM)
    await turns.take("first")
    small = [asyncio.create_task(turns.take("small", 150)) for _ in range(3)]
    await settle()
    with pytest.raises(QueueFull):
        await turns.take("large", 600)
    await settle()
    assert not any(task.done() for task in small)
    for task in small:
        task.cancel()
    await asyncio.gather(*small, return_exceptions=True)
