"""The base as the learner runs it: many adapters in one flat pass, forward and backward.

In bf16 where the processor multiplies it in hardware. How the network runs is by architecture: by
hand where its blocks are Llama's, as a twin of its modules otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cambium.core.errors import ModelError
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel
from cambium.models.chunked_head import HeadLoss, cross_entropy
from cambium.models.flat_pass import FlatPass, Passes
from cambium.models.llama_passes import LlamaPasses, are_llamas
from cambium.models.lora import Lora, LoraConfig
from cambium.models.packing import Pack, Segment, targets_of
from cambium.models.packing import pack as packed
from cambium.models.stack import Stack
from cambium.models.twin_passes import TwinPasses


def compute_dtype() -> torch.dtype:
    """Returns bf16 where the processor multiplies it in hardware, else fp32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


class TrainingModel:
    """Runs packs of tokens through the frozen base with stacks of adapters.

    Passes take the base's lock, so that learning and answers take turns on the processor. Before
    the first pass it is checked in fp32 that two packed texts score as each does alone in the
    base: an architecture with attention or a head of its own kind serves, but does not learn.
    """

    def __init__(self, base: BaseModel, dtype: torch.dtype | None = None) -> None:
        self.base = base
        self.dtype = dtype or compute_dtype()
        kind: type[Passes] = LlamaPasses if are_llamas(base) else TwinPasses
        self._passes = kind(base, self.dtype)
        self._is_checked = False

    def train_pass(
        self,
        pack: Pack,
        stack: Stack,
        loss: HeadLoss,
        *,
        parents: Stack | None = None,
    ) -> Tensor:
        """Returns the losses [M] of `pack`'s target positions; adds gradients to the stack.

        Raises:
            ModelError: the base is of an architecture that cannot be taught this way.
        """
        within = FlatPass(pack=pack, stack=stack, parents=parents)
        return self._run(self._passes.learn, within, loss)

    def eval_pass(
        self,
        pack: Pack,
        stack: Stack,
        loss: HeadLoss,
        *,
        parents: Stack | None = None,
    ) -> Tensor:
        """Returns the losses [M] of `pack`'s target positions, in order.

        Raises:
            ModelError: the base is of an architecture that cannot be taught this way.
        """
        within = FlatPass(pack=pack, stack=stack, parents=parents)
        return self._run(self._passes.losses, within, loss)

    def _run(
        self, work: Callable[[FlatPass, HeadLoss], Tensor], within: FlatPass, loss: HeadLoss
    ) -> Tensor:
        def run() -> Tensor:
            with self.base.lock:
                return work(within, loss)

        self._check()
        return self.base.run(run)

    def _check(self) -> None:
        """Refuses a base whose passes do not compute what the base does."""
        if not self._is_checked:
            exact = self if self.dtype == torch.float32 else TrainingModel(self.base, torch.float32)
            exact._compare()
            self._is_checked = True

    @torch.no_grad()
    def _compare(self) -> None:
        length = min(24, self.base.context)
        ids = torch.arange(2 * (length + 1)) % self.base.model.config.get_text_config().vocab_size
        rows = ids.view(2, length + 1)
        segments = [Segment(adapter=0, tokens=row[:-1], targets=row[1:]) for row in rows.tolist()]
        empty = Lora(config=LoraConfig(), a={}, b={})
        stack = AdapterStack([empty], self.base.sites, dtype=self.dtype)
        targets, _ = targets_of(segments)
        loss = cross_entropy(targets, torch.ones(len(targets)))
        with self.base.rows(None) as model:
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
        expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        try:
            with self.base.lock:
                found = self._passes.losses(FlatPass(pack=packed(segments), stack=stack), loss)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise _unteachable(self.base) from error
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
            raise _unteachable(self.base)


def _unteachable(base: BaseModel) -> ModelError:
    kind = type(base.model).__name__
    return ModelError(
        f"{kind} computes attention or its head otherwise than in packed passes, so it serves but "
        "cannot learn here",
        mend="use a base of a Llama, Qwen or GPT-2 kind for learning",
    )
