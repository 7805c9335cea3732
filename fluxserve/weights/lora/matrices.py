"""From the matrices that a file holds for a module to the branch they make up: LoRA, LoHa or LoKr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.lora_keys import LOHA, LOKR, Kind
from fluxserve.models.lora_target import LoraTarget
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.lora.branch import Branch, Hadamard, Kronecker, LowRank, swapped
from fluxserve.weights.lora.strength import Strengths

_PAIRS: tuple[Kind, ...] = ("down", "up")


def read_branch(
    reader: TensorReader, module: str, keys: Mapping[Kind, str], target: LoraTarget, strengths: Strengths
) -> Branch:
    """keys: of the module's matrices and alpha, by kind.

    Raises:
        CheckpointError: one is missing, of another size, or not finite; names the module.
    """
    alpha = _alpha(reader, keys["alpha"]) if "alpha" in keys else None
    found: dict[Kind, Tensor] = {kind: reader.read(key) for kind, key in keys.items() if kind != "alpha"}
    where = f"{reader.source}: {module}"
    if not all(matrix.is_floating_point() and matrix.float().isfinite().all() for matrix in found.values()):
        raise CheckpointError(f"{reader.source}: the matrices of {module} are not all finite floating point numbers")
    bias = found.pop("bias", None)
    if bias is not None and bias.shape != (target.rows,):
        raise CheckpointError(
            f"{reader.source}: {keys['bias']} is {tuple(bias.shape)}, this model takes ({target.rows},)"
        )
    branch, rank = _assembled(found, where, target)
    branch = branch.scaled(strengths.scale(module, rank, alpha))
    if target.swap_halves:
        branch, bias = branch.halves_swapped(), None if bias is None else swapped(bias)
    return replace(branch, bias=bias)


def _assembled(found: Mapping[Kind, Tensor], where: str, target: LoraTarget) -> tuple[Branch, int | None]:
    """(the branch at scale 1, its rank). None: of a LoKr whose two factors are whole, which tells none."""
    families = [family for family in (_PAIRS, LOHA, LOKR) if any(kind in found for kind in family)]
    if len(families) > 1:
        raise CheckpointError(f"{where} mixes kinds of matrices: {', '.join(found)}")
    if families == [LOKR]:
        return _kronecker(found, where, target)
    if families == [LOHA]:
        up_1, down_1 = _product(found, ("hada_w1_a", "hada_w1_b"), where, target)
        up_2, down_2 = _product(found, ("hada_w2_a", "hada_w2_b"), where, target)
        return Hadamard(1.0, target.first_row, up_1, down_1, up_2, down_2), down_1.shape[0]
    up, down = _product(found, ("up", "down"), where, target)
    return LowRank(1.0, target.first_row, down, up), down.shape[0]


def _product(
    found: Mapping[Kind, Tensor], kinds: tuple[Kind, Kind], where: str, target: LoraTarget
) -> tuple[Tensor, Tensor]:
    """(up, down), whose product has the target's size."""
    lacking = next((kind for kind in kinds if kind not in found), None)
    if lacking is not None:
        raise CheckpointError(f"{where} lacks its {lacking} matrix")
    up, down = (found[kind] for kind in kinds)
    rank = down.shape[0] if down.ndim else 0
    if rank == 0 or down.shape != (rank, target.columns) or up.shape != (target.rows, rank):
        raise CheckpointError(
            f"{where} has matrices {tuple(down.shape)} and {tuple(up.shape)}; "
            f"this model takes (rank, {target.columns}) and ({target.rows}, rank), of a rank of at least 1"
        )
    return up, down


def _kronecker(found: Mapping[Kind, Tensor], where: str, target: LoraTarget) -> tuple[Branch, int | None]:
    left, left_rank = _factor(found, ("lokr_w1", "lokr_w1_a", "lokr_w1_b"), where)
    right, right_rank = _factor(found, ("lokr_w2", "lokr_w2_a", "lokr_w2_b"), where)
    if [a * b for a, b in zip(left.shape, right.shape, strict=True)] != [target.rows, target.columns]:
        raise CheckpointError(
            f"{where} has factors {tuple(left.shape)} and {tuple(right.shape)}; "
            f"this model takes those whose sides multiply to ({target.rows}, {target.columns})"
        )
    return Kronecker(1.0, target.first_row, left, right), right_rank or left_rank


def _factor(found: Mapping[Kind, Tensor], kinds: tuple[Kind, Kind, Kind], where: str) -> tuple[Tensor, int | None]:
    """(one factor, its rank if it is a product itself)."""
    whole, up, down = (found.get(kind) for kind in kinds)
    if whole is not None and up is None and down is None and whole.ndim == 2:
        return whole, None
    if whole is None and up is not None and down is not None and up.ndim == down.ndim == 2:
        rank = down.shape[0]
        if up.shape[1] == rank > 0:
            return up.float() @ down.float(), rank
    shapes = ", ".join(f"{kind} {tuple(found[kind].shape)}" for kind in kinds if kind in found) or "neither"
    raise CheckpointError(f"{where} has {shapes}; LoKr takes {kinds[0]}, or {kinds[1]} (rows, rank) and {kinds[2]}")


def _alpha(reader: TensorReader, key: str) -> float:
    alpha = reader.read(key)
    if alpha.numel() != 1:
        raise CheckpointError(f"{reader.source}: {key} is no single number")
    return float(alpha)
