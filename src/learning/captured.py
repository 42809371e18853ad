"""A training step as one CUDA graph, so that the GPU does not wait for kernel launches.

Computing a step of 16 slices takes a GPU less time than launching its kernels one by one. After
they are captured once, all kernels are launched together and use the same memory in each step.
"""

from functools import partial

import torch

from learning.epochs import Step, take_step
from learning.optimization import Trainer

WARM_UP = 3  # ordinary steps before the capture, which allocate persistent memory


class CapturedStep:
    """take_step as a CUDA graph for batches of one shape, captured after WARM_UP ordinary steps."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.n_steps = trainer, 0
        self.side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Train on a batch; return the loss."""
        self.n_steps += 1
        if self.n_steps <= WARM_UP:
            return self.take_on_side_stream(images, masks)
        if self.n_steps == WARM_UP + 1:
            self.capture(images, masks)
        if self.graph is None:
            return take_step(self.trainer, images, masks)
        self.images.copy_(images, non_blocking=True)
        self.masks.copy_(masks, non_blocking=True)
        self.graph.replay()
        return self.loss.clone()

    def take_on_side_stream(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Train on a batch in a side stream, as CUDA requires before a capture."""
        self.side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side_stream):
            loss = take_step(self.trainer, images, masks)
        torch.cuda.current_stream().wait_stream(self.side_stream)
        return loss

    def capture(self, images: torch.Tensor, masks: torch.Tensor) -> None:
        """Capture the step without running it; print a message if that is not possible."""
        self.images, self.masks = images.clone(), masks.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            # Meanwhile the data loader's thread allocates memory, which must not stop the capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.loss = take_step(self.trainer, self.images, self.masks)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.trainer.optimizer.zero_grad(set_to_none=True)  # left by the failed capture
            reason = str(error).partition("\n")[0]
            print(f"CUDA graph capture failed; training continues without a graph: {reason}")
        else:
            self.graph = graph


def make_step(trainer: Trainer) -> Step:
    """Return the training step: a CapturedStep on one GPU, take_step everywhere else."""
    if trainer.fabric.device.type == "cuda" and trainer.fabric.world_size == 1:
        return CapturedStep(trainer)
    return partial(take_step, trainer)
