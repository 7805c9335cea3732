"""Which families there are, one row each; and which of them a file, a folder or a name belongs to.

A row is text, `module:object`, imported when it is needed: listing models takes no torch, and a worker process that has
added a row of its own serves that family without a change here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fluxserve.models.variant import Variant

if TYPE_CHECKING:
    from fluxserve.models.family import Family, Part


@dataclass(frozen=True)
class Row:
    """family: of a `Family`. variants: of its variants by name, in a module without torch."""

    family: str
    variants: str


ROWS: dict[str, Row] = {
    "flux2": Row("fluxserve.models.flux2.family:FLUX2_FAMILY", "fluxserve.models.flux2.variants:VARIANTS"),
    "flux1": Row("fluxserve.models.flux1.family:FLUX1_FAMILY", "fluxserve.models.flux1.variants:VARIANTS"),
    "flux3": Row("fluxserve.models.flux3.family:FLUX3_FAMILY", "fluxserve.models.flux3.variants:VARIANTS"),
    "zimage": Row("fluxserve.models.zimage.family:ZIMAGE_FAMILY", "fluxserve.models.zimage.variants:VARIANTS"),
}
"""The more particular first: FLUX.2's files bear all of FLUX.1's markers, and one more; and the owner of a network
before those that borrow it."""


def families() -> list[Family]:
    """All of them, in the rows' order."""
    return [_object(row.family) for row in ROWS.values()]


def variants() -> dict[str, Variant]:
    """Every variant of every family, by name."""
    tables: list[Mapping[str, Variant]] = [_object(row.variants) for row in ROWS.values()]
    return {name: variant for table in tables for name, variant in table.items()}


def variants_of(family: str) -> list[str]:
    """The names of one row's variants, the usual one first."""
    return list(_object(ROWS[family].variants))


def short_names() -> dict[str, str]:
    """The variants that are published, with their Hub ids."""
    return {name: variant.repository for name, variant in variants().items() if variant.repository}


def licence_of(repository: str) -> str | None:
    """That of a published variant, by its Hub id; None where it is not known here."""
    return next((variant.licence for variant in variants().values() if variant.repository == repository), None)


def family_of_variant(name: str) -> Family:
    """The family that has a variant of this name."""
    row = next(row for row in ROWS.values() if name in _object(row.variants))
    return _object(row.family)


def family_of_pipeline(class_name: str) -> Family | None:
    """The family of a model_index.json's class; None if no family draws with it."""
    return next((family for family in families() if class_name in family.pipelines), None)


def family_of_parts(found: Collection[Part]) -> Family | None:
    """The family whose denoiser is among the parts; else one that has any of them; None without parts."""
    known = families()
    leading = [family for family in known for part in family.parts if part.role == "denoiser" and part in found]
    having = [family for family in known for part in family.parts if part in found]
    return next(iter([*leading, *having]), None)


def parts() -> list[Part]:
    """Every part of every family, once."""
    return list(dict.fromkeys(part for family in families() for part in family.parts))


def tokenizers() -> dict[str, tuple[str, ...]]:
    """Every tokenizer's folder, with the files one of which it must hold for some family."""
    together: dict[str, tuple[str, ...]] = {}
    for family in families():
        for folder, files in family.tokenizers.items():
            together[folder] = tuple(dict.fromkeys((*together.get(folder, ()), *files)))
    return together


def _object(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
