"""A Dockerfile as its stages and their instructions: as much of the format as ours use. Builds nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """base: what its FROM names. instructions: (keyword, arguments), continued lines joined."""

    base: str
    name: str | None
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [arguments for word, arguments in self.instructions if word == keyword]


@dataclass(frozen=True)
class Dockerfile:
    """arguments: the ARGs before the first FROM, by name."""

    arguments: dict[str, str]
    stages: list[Stage]

    def lineage(self) -> list[Stage]:
        """The last stage and the stages it is built upon, the last first: all that is in the image but for COPY."""
        named = {stage.name: stage for stage in self.stages if stage.name}
        line = [self.stages[-1]]
        while line[-1].base in named:
            line.append(named[line[-1].base])
        return line

    def environment(self) -> dict[str, str]:
        """What ENV sets in the image."""
        settings = [pair for stage in reversed(self.lineage()) for line in stage.all("ENV") for pair in line.split()]
        return dict(pair.split("=", 1) for pair in settings)


def read_dockerfile(path: Path) -> Dockerfile:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in whole.splitlines():
        keyword, rest = line.split(maxsplit=1)
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name or None))
        elif stages:
            stages[-1].instructions.append((keyword, rest))
        else:
            arguments.update([rest.split("=", 1)])
    return Dockerfile(arguments, stages)
