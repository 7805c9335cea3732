"""Twenty thousand damaged pictures through the process that decodes uploads."""

from __future__ import annotations

from scripts.endurance.goals import Goal, Scale, none_of
from tests.decoding.test_damaged_files import damaged_files, outcomes, unexpected

FILES = 20_000


async def uploads(scale: Scale) -> list[Goal]:
    """The whole part; other files each time it is run at another scale."""
    files = scale.of(FILES)
    ends = await outcomes(damaged_files(files, seed=files))
    return [none_of("R23", "damaged uploads that are neither read nor refused", unexpected(ends), files)]
