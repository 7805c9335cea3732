"""The cache of encoded prompts is bounded in bytes."""

from __future__ import annotations

from fluxserve.pipeline.cache import ByteBoundedCache


def test_the_least_recently_used_values_make_room() -> None:
    cache = ByteBoundedCache[bytes](10, len)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("c", b"1234")
    assert cache.get("b") is None
    assert cache.get("a") == b"1234"
    assert cache.get("c") == b"1234"


def test_replacing_a_value_does_not_count_it_twice() -> None:
    cache = ByteBoundedCache[bytes](10, len)
    for _ in range(5):
        cache.put("a", b"12345")
    cache.put("b", b"12345")
    assert cache.get("a") == b"12345"


def test_a_value_larger_than_the_bound_is_not_kept() -> None:
    cache = ByteBoundedCache[bytes](10, len)
    cache.put("a", b"12345")
    cache.put("b", bytes(11))
    assert cache.get("b") is None
    assert cache.get("a") == b"12345"
