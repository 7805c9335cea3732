"""Writes a complete model of seeded random weights: for tests, benches and people without the weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fluxserve.errors import FluxserveError
from fluxserve.models import registry
from fluxserve.weights.synthetic.write import write_model

EXIT_CONFIG = 78
VARIANTS = {"flux1": ("schnell", "dev"), "flux2": ("klein", "klein-base")}
"""By family, the default first."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/make_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--family", choices=VARIANTS, default="flux1")
    parser.add_argument("--variant", help=f"of the family: {VARIANTS}; its first if left out")
    parser.add_argument("--size", default="tiny", help="tiny, slim (full width, little depth), full (16 or 34 GB), ...")
    parser.add_argument("--layout", choices=("diffusers", "bfl"), default="diffusers")
    parser.add_argument("--format", choices=("bf16", "fp8", "q4_0"), default="bf16", help="of what has blocks")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    variant = arguments.variant or VARIANTS[arguments.family][0]
    if variant not in VARIANTS[arguments.family]:
        parser.error(f"--variant must be one of {', '.join(VARIANTS[arguments.family])}, got {variant!r}")
    sizes = registry.family_of_variant(variant).sizes
    if arguments.size not in sizes:
        parser.error(f"--size must be one of {', '.join(sizes)}, got {arguments.size!r}")
    try:
        write_model(arguments.folder, arguments.size, variant, arguments.layout, arguments.seed, arguments.format)
    except FluxserveError as error:
        print(error.message, file=sys.stderr)
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
