"""Writes a complete FLUX model of seeded random weights: for tests, benches and people without the weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fluxserve.errors import FluxserveError
from fluxserve.models.flux1.family import FLUX1_FAMILY as FLUX1
from fluxserve.weights.synthetic.write import write_model

EXIT_CONFIG = 78


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/make_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--size", choices=FLUX1.sizes, default="tiny", help="slim: full width, little depth; full: 34 GB"
    )
    parser.add_argument("--variant", choices=("schnell", "dev"), default="schnell")
    parser.add_argument("--layout", choices=("diffusers", "bfl"), default="diffusers")
    parser.add_argument("--format", choices=("bf16", "fp8", "q4_0"), default="bf16", help="of the transformer and T5")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        write_model(
            arguments.folder,
            arguments.size,
            arguments.variant,
            arguments.layout,
            arguments.seed,
            packing=arguments.format,
        )
    except FluxserveError as error:
        print(error.message, file=sys.stderr)
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
