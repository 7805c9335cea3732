"""Computes gradients on several cores, one thread a core, without waiting for the slowest.

Each thread draws a small batch, runs it forward and back with single-threaded kernels and queues its gradients; a
step takes the next few from the queue. On a machine that others use too this loses nothing when a core is taken away,
where kernels that share out every operation among the cores would wait for the taken one each time. A gradient may be
one step old. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

THREADS = os.cpu_count() or 1

Job = Callable[[int], Tensor]
"""Draws a batch, given the number of the thread, and returns its loss."""


class Workers:
    def __init__(self, parameters: Sequence[nn.Parameter], job: Job, threads: int) -> None:
        torch.set_num_threads(1)
        torch.backends.cuda.enable_flash_sdp(False)  # despite its name for CPUs too; there its backward is slow
        self._parameters, self._job = list(parameters), job
        self._done: queue.Queue[tuple[float, Sequence[Tensor | None]] | BaseException] = queue.Queue(maxsize=threads)
        self._ending = False
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the batches under way and drops them."""
        self._ending = True
        while any(thread.is_alive() for thread in self._threads):
            with contextlib.suppress(queue.Empty):
                self._done.get(timeout=0.1)

    def _run(self, number: int) -> None:
        while not self._ending:
            try:
                loss = self._job(number)
                self._done.put((loss.item(), torch.autograd.grad(loss, self._parameters, allow_unused=True)))
            except BaseException as error:  # raised again where the gradients are taken
                self._done.put(error)
                return

    def gradients(self, targets: Sequence[nn.Parameter], count: int) -> float:
        """Sets .grad of `targets` (in the order of `parameters`) to the mean over `count` batches; returns the loss."""
        total = 0.0
        for target in targets:
            target.grad = None
        for _ in range(count):
            done = self._done.get()
            if isinstance(done, BaseException):
                raise done
            total += done[0] / count
            for target, gradient in zip(targets, done[1], strict=True):
                if gradient is not None:
                    _add(target, gradient, 1.0 / count)
        return total


class Inline:
    """As Workers, but all in the calling thread: for a GPU, which does one thing after another."""

    def __init__(self, parameters: Sequence[nn.Parameter], job: Job) -> None:
        self._parameters, self._job = list(parameters), job

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def gradients(self, targets: Sequence[nn.Parameter], count: int) -> Tensor:
        """As Workers.gradients; the loss stays on the device, so that nothing waits for it."""
        total = torch.zeros(())
        for target in targets:
            target.grad = None
        for _ in range(count):
            loss = self._job(0)
            total = total.to(loss.device) + loss.detach() / count
            found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            for target, gradient in zip(targets, found, strict=True):
                if gradient is not None:
                    _add(target, gradient, 1.0 / count)
        return total


def _add(target: nn.Parameter, gradient: Tensor, weight: float) -> None:
    if target.grad is None:
        target.grad = gradient.to(target.dtype) * weight
    else:
        target.grad.add_(gradient, alpha=weight)
