"""How strongly each module of a LoRA acts: its own alpha, or what an adapter's configuration tells, read as peft does.

The configuration lies in `adapter_config.json` beside the file (peft), or in the file's metadata (diffusers).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import regex

from fluxserve.errors import CheckpointError
from fluxserve.weights.files.json_file import parse_json, read_json
from fluxserve.weights.files.safetensors_file import SafetensorsFile

METADATA_FIELD = "lora_adapter_metadata"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model"
PEFT_ALPHA = 8.0
"""What peft takes where a configuration names no lora_alpha."""

REFUSED_FIELDS = {"use_dora": "DoRA", "use_qalora": "QALoRA", "use_bdlora": "BD-LoRA", "kasa_config": "KaSA"}
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the model's own weights as they are."""

MAX_PATTERN, MATCHING_SECONDS = 300, 5.0

Dots = tuple[int, ...]
"""Where a pattern has them."""
Found = tuple[int, float | None]
"""A pattern's place in the file, and its value."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,300}")


class Strengths:
    """Scales of a file's modules.

    Raises:
        CheckpointError: a configuration is damaged, or of an adapter of another kind; names the field.
    """

    def __init__(self, path: Path, reader: SafetensorsFile) -> None:
        self.source = reader.source
        self._configs = {
            f"{network}." if network else "": _Config(source, fields)
            for source, network, fields in (*_in_metadata(reader), *_beside(path))
        }
        self.peft_without_config = not self._configs and any(key.startswith(PEFT_PREFIX) for key in reader.keys())

    def scale(self, module: str, rank: float | None, alpha: float | None) -> float:
        """rank: of the module's matrices. alpha: its own, which goes before any configuration's.

        Where the matrices tell no rank (a LoKr of whole factors), as in lycoris: an alpha of its own means nothing.

        Raises:
            CheckpointError: alpha is not finite, or a configuration gives the module another rank.
        """
        prefix = max((prefix for prefix in self._configs if module.startswith(prefix)), key=len, default=None)
        config = None if prefix is None else self._configs[prefix]
        if rank is None:
            alpha = None
        if alpha is None and config is not None:
            name = module.removeprefix(prefix or "")
            alpha, rank = config.alpha(name, rank), rank or config.rank(name)
        if alpha is None or not rank:
            return 1.0
        if not math.isfinite(alpha):
            raise CheckpointError(f"{self.source}: the alpha of {module} is {alpha}, expected a finite number")
        return alpha / (math.sqrt(rank) if config is not None and config.rslora else rank)


def _in_metadata(reader: SafetensorsFile) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(source, network, its fields): each field is named NETWORK.FIELD, or FIELD alone for names without a network."""
    raw = reader.metadata.get(METADATA_FIELD)
    if raw is None:
        return
    source = f"{reader.source}: {METADATA_FIELD}"
    networks: dict[str, dict[str, Any]] = {}
    for key, value in parse_json(str(raw).encode(), source).items():
        network, _, field = key.rpartition(".")
        networks.setdefault(network, {})[field] = value
    yield from ((source, network, fields) for network, fields in networks.items())


def _beside(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """peft's own file has its configuration beside it; under another name, if it is the folder's only LoRA."""
    config = path.parent / PEFT_CONFIG
    if config.is_file() and (path.name == PEFT_WEIGHTS or _alone(path)):
        yield str(config), PEFT_PREFIX, read_json(config)


def _alone(path: Path) -> bool:
    return [other.name for other in path.parent.glob("[!.]*.safetensors")] == [path.name]


class _Config:
    """A network's part of a configuration."""

    def __init__(self, source: str, fields: Mapping[str, Any]) -> None:
        _require_plain(source, fields)
        self._source = source
        self.rslora = fields.get("use_rslora") is True
        alpha = "lora_alpha" if fields.get("peft_type") in (None, "LORA") else "alpha"
        self._alpha = _number(source, alpha, fields.get(alpha), PEFT_ALPHA)
        self._rank = _number(source, "r", fields.get("r"), None)
        self._alphas = Patterns(source, "alpha_pattern", fields.get("alpha_pattern"))
        self._ranks = Patterns(source, "rank_pattern", fields.get("rank_pattern"))

    def rank(self, name: str) -> float | None:
        return self._ranks.first(name, self._rank)

    def alpha(self, name: str, rank: float | None) -> float | None:
        """name: of a module within its network. rank: that of its matrices, if they tell one."""
        expected = self.rank(name)
        if None not in (expected, rank) and expected != rank:
            raise CheckpointError(f"{self._source}: gives {name} the rank {expected:g}; its matrices have {rank:g}")
        return self._alphas.first(name, self._alpha)


class Patterns:
    """Values by regular expressions: the first that matches a name, or its end behind a dot, tells.

    They come from files, so they are kept short, and matching ends after some seconds in all. Those that are names, in
    which a dot stands for any character, are looked up and not tried one by one. Follows peft
    `utils.other.get_pattern_key`.
    """

    def __init__(self, source: str, field: str, patterns: object) -> None:
        self._source = f"{source}: {field}"
        if not isinstance(patterns, dict | None):
            raise CheckpointError(f"{self._source} must map patterns to numbers, got {patterns!r:.80}")
        self._names: dict[int, dict[Dots, dict[str, Found]]] = {}
        self._expressions: list[tuple[int, Any, float | None]] = []
        for place, (pattern, value) in enumerate((patterns or {}).items()):
            self._add(place, pattern, _number(self._source, pattern, value, None))
        self._seconds = MATCHING_SECONDS

    def _add(self, place: int, pattern: str, value: float | None) -> None:
        if not _NAME.fullmatch(pattern):
            self._expressions.append((place, _compiled(self._source, pattern), value))
            return
        dots = tuple(i for i, character in enumerate(pattern) if character == ".")
        self._names.setdefault(len(pattern), {}).setdefault(dots, {}).setdefault(pattern, (place, value))

    def first(self, name: str, otherwise: float | None) -> float | None:
        started = time.monotonic()
        found = min(self._named(name), default=None)
        try:
            for place, pattern, value in self._expressions:
                if found is not None and found[0] < place:
                    break
                if pattern.match(name, timeout=self._seconds):
                    return value
        except TimeoutError as error:
            raise CheckpointError(f"{self._source}: a pattern takes too long to match {name}") from error
        finally:
            self._seconds = max(self._seconds - (time.monotonic() - started), 0.001)
        return otherwise if found is None else found[1]

    def _named(self, name: str) -> Iterator[Found]:
        """The patterns that are the name, or its end behind a dot."""
        for start in (0, *(i + 1 for i, character in enumerate(name) if character == ".")):
            end = name[start:]
            for dots, patterns in self._names.get(len(end), {}).items():
                dotted = "".join("." if i in dots else character for i, character in enumerate(end))
                if dotted in patterns:
                    yield patterns[dotted]


def _compiled(source: str, pattern: str) -> Any:
    if len(pattern) > MAX_PATTERN:
        raise CheckpointError(f"{source}: a pattern has {len(pattern)} characters, allowed are {MAX_PATTERN}")
    whole = rf"(.*\.)?({pattern})$"
    try:
        re.compile(whole)  # what peft would refuse, and regex may not
        return regex.compile(whole, cache_pattern=False)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{source}: {pattern!r} is no regular expression: {error}") from error


def _require_plain(source: str, fields: Mapping[str, Any]) -> None:
    what = next((what for field, what in REFUSED_FIELDS.items() if fields.get(field)), None)
    kind, start = fields.get("peft_type"), fields.get("init_lora_weights")
    if kind not in (None, "LORA", "LOHA", "LOKR"):
        what = str(kind)[:40]
    if start not in HARMLESS_STARTS:
        what = f"a LoRA that began as {str(start)[:40]}, which changes the model's own weights too"
    if what is not None:
        raise CheckpointError(f"{source}: is {what}, which fluxserve does not support")


def _number(source: str, field: str, value: object, otherwise: float | None) -> float | None:
    """A finite number; `otherwise` for null."""
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{source}: {field} must be a finite number, got {str(value)[:40]}")
    return float(value)
