"""The protocol that a pipeline and its samples follow, for the worker to drive them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from fluxserve.config import PipelineConfig
from fluxserve.request import GeneratedImage, GenerationRequest, ModelCard, Timings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

CancellationCallback = Callable[[], None]
ProgressCallback = Callable[[str, int, int], None]


class Sample(Protocol):
    """One image under way: `step` of `steps` are done, `index` is its place in the request."""

    @property
    def index(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def done(self) -> bool: ...
    @property
    def batch_key(self) -> Hashable: ...

    def timings(self, spent_ms: Mapping[str, float]) -> Timings:
        """spent_ms: wall time by Timings field."""
        ...


S = TypeVar("S", bound=Sample)


class Pipeline(Protocol[S]):
    """All methods but `encode` are called from one thread; `encode` from another, beside them.

    cancellation: called inside long methods; what it raises ends them. max_batch: samples worth stepping together, of
    which `most_together` tells how many the memory has room for.
    """

    card: ModelCard
    max_batch: int

    def begin(self, request: GenerationRequest, cancellation: CancellationCallback, /) -> list[S]: ...
    def text_usage(self, samples: Sequence[S]) -> tuple[int, int | None]: ...
    def most_together(self, sample: S) -> int: ...
    def step(self, samples: Sequence[S]) -> None: ...
    def preview(self, sample: S, cancellation: CancellationCallback, /) -> Pixels: ...
    def decode(self, sample: S, cancellation: CancellationCallback, /) -> Pixels: ...
    def encode(self, pixels: Pixels, sample: S) -> GeneratedImage: ...
    def replan(self, cancellation: CancellationCallback, /) -> None:
        """Takes less memory from now on. Raises DeviceError if that cannot be."""
        ...


Loader = Callable[[PipelineConfig, ProgressCallback, int | None], Pipeline[S]]
"""The last argument: `wire.Load.shared`."""
Describer = Callable[[PipelineConfig], tuple[ModelCard, int]]
"""(what the model would be, what its device has free in bytes), without reading weights."""
