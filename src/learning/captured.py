"""A step of training as one CUDA graph, so that a GPU does not wait for kernels to be launched.

A step of 16 slices takes a GPU less time than launching its kernels one by one. Captured once, they
are launched as one, on the same memory in each step.
"""

from functools import partial

import torch

from learning.epochs import Step, take_step
from learning.optimization import Trainer

WARM_UP = 3  # steps taken as they are before the capture, which allocate what stays allocated


class CapturedStep:
    """take_step for batches of one shape, captured once a few steps have been taken."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.n_steps = trainer, 0
        self.side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Train on a batch; return the loss."""
        self.n_steps += 1
        if self.n_steps <= WARM_UP:
            return self.take_aside(images, masks)
        if self.n_steps == WARM_UP + 1:
            self.capture(images, masks)
        if self.graph is None:
            return take_step(self.trainer, images, masks)
        self.images.copy_(images, non_blocking=True)
        self.masks.copy_(masks, non_blocking=True)
        self.graph.replay()
        return self.loss.clone()

    def take_aside(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Train on a batch on another stream than all else, as it must be before a capture."""
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            loss = take_step(self.trainer, images, masks)
        torch.cuda.current_stream().wait_stream(self.side)
        return loss

    def capture(self, images: torch.Tensor, masks: torch.Tensor) -> None:
        """Capture the step, which computes nothing yet; where it is not possible, say so."""
        self.images, self.masks = images.clone(), masks.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            # The loader's thread allocates memory meanwhile, which must not stop the capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.loss = take_step(self.trainer, self.images, self.masks)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.trainer.optimizer.zero_grad(set_to_none=True)  # which the attempt may have left
            reason = str(error).partition("\n")[0]
            print(f"the step cannot be captured as a CUDA graph, and stays as it is: {reason}")
        else:
            self.graph = graph


def make_step(trainer: Trainer) -> Step:
    """Return a step of training: on one GPU a captured one, elsewhere take_step as it is."""
    if trainer.fabric.device.type == "cuda" and trainer.fabric.world_size == 1:
        return CapturedStep(trainer)
    return partial(take_step, trainer)
