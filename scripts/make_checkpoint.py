"""Writes a complete model of seeded random weights: for tests, benches and people without the weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from fluxserve.errors import FluxserveError
from fluxserve.exit_codes import exit_code
from fluxserve.models import registry
from fluxserve.models.synthetic import Packing
from fluxserve.weights.synthetic.write import write_model


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/make_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--family", choices=registry.ROWS, default="flux1")
    parser.add_argument("--variant", help="of the family, such as dev or klein-base; its first if left out")
    parser.add_argument("--size", default="tiny", help="tiny, slim (full width, little depth), full (16 or 34 GB), ...")
    parser.add_argument("--layout", choices=("diffusers", "bfl"), default="diffusers")
    parser.add_argument("--format", choices=get_args(Packing), default="bf16", help="of what has blocks")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    variants = registry.variants_of(arguments.family)
    variant = arguments.variant or variants[0]
    if variant not in variants:
        parser.error(f"--variant must be one of {', '.join(variants)}, got {variant!r}")
    sizes = registry.family_of_variant(variant).sizes
    if arguments.size not in sizes:
        parser.error(f"--size must be one of {', '.join(sizes)}, got {arguments.size!r}")
    try:
        write_model(arguments.folder, arguments.size, variant, arguments.layout, arguments.seed, arguments.format)
    except FluxserveError as error:
        print(error.message, file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
