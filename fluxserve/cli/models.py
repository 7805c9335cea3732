"""`fluxserve models`: what MODEL may be, and which of it is here already. Loads nothing."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fluxserve.models import registry
from fluxserve.models.variant import Variant


def models() -> None:
    """List the models that can be named."""
    table = Table(box=None, pad_edge=False)
    table.add_column("MODEL", no_wrap=True)
    for heading in ("steps", "size", "text tokens", "licence", "here"):
        table.add_column(heading)
    cached = _cached_repositories()
    for variant in registry.variants().values():
        name = variant.repository or variant.name
        here = "yes" if variant.repository is None or variant.repository in cached else "no"
        table.add_row(name, *map(escape, _facts(variant)), here)
    console = Console()
    console.print(table)
    console.print(
        "\nAlso: any Hub id or folder in diffusers' layout, or a transformer's .safetensors or .gguf file.",
        highlight=False,
    )


def _facts(variant: Variant) -> tuple[str, str, str, str]:
    width, height = variant.default_size
    return str(variant.steps["medium"]), f"{width}x{height}", str(variant.max_sequence_length), variant.licence


def _cached_repositories() -> set[str]:
    """Hub ids of which something lies in the local cache, or whose ungated copies have been pulled."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from fluxserve.weights.hub.ungated import composed_folder

    pulled = {name for name in registry.short_names().values() if composed_folder(name) is not None}
    try:
        return pulled | {repository.repo_id for repository in scan_cache_dir().repos}
    except CacheNotFound:
        return pulled
