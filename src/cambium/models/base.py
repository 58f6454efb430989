"""A frozen base with batched adapters: each row of a batch may have its own.

The base's weights are never written: adapters act through forward hooks on its linear
modules, which add `x A^T B^T * scale` to the output of the rows that have one, and on its word
embeddings, which give virtual tokens their own. Shape letters: B rows, T positions, V vocabulary,
R rank of a slice, I inputs, O outputs, P virtual tokens, D d_model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cambium.core.errors import ModelError
from cambium.models.adapter import Adapter
from cambium.models.breaking_off import check_going_on
from cambium.models.compute_thread import ComputeThread
from cambium.models.fair_lock import FairLock
from cambium.models.lora import ALL_LINEAR, LinearSite, LoraConfig
from cambium.models.soft_prompt import with_prompts

# Adapters are applied in slices of this rank, each a product of one shape: a row's own slices
# are the same whatever ranks its neighbours have, and the others add exact zeros to it.
RANK_SLICE = 8
BUNDLED = Path(__file__).parent / "bundled"
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class RowWeights:
    """Adapter weights for a batch: per module slices of A^T [B I R] and scaled B^T [B R O].

    Without the first dimension they act on every row alike.

    Args:
        prompts: embeddings of virtual tokens [B P D], None where no row has any.
    """

    sites: Mapping[str, tuple[tuple[Tensor, Tensor], ...]]
    prompts: Tensor | None = None

    @property
    def rank(self) -> int:
        """Returns the rank of all slices of a module together."""
        return max((sum(a.shape[-1] for a, _ in own) for own in self.sites.values()), default=0)


class BaseModel:
    """A causal language model whose weights stay as loaded.

    Every forward pass goes through `rows`, which holds the one lock of the processor: passes
    of the engine, the learner and the gates take turns. What `run` is given runs where passes are
    fastest: on the compute thread once there is one.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, *, digest: str, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.digest = digest
        self.name = name
        self.sites = _linear_sites(model)
        self.context = _context_length(model)
        self.lock = FairLock()
        self.compute_thread: ComputeThread | None = None
        self._active: RowWeights | None = None
        for path in self.sites:
            module = model.get_submodule(path)
            module.register_forward_hook(self._hook(path))
        self._hook_embeddings(model.get_input_embeddings())

    @property
    def transposed(self) -> bool:
        """Returns whether the base keeps linear weights as [I O] (PEFT's `fan_in_fan_out`)."""
        return any(site.transposed for site in self.sites.values())

    @property
    def num_threads(self) -> int:
        """Returns how many threads a pass runs on."""
        return self.compute_thread.num_threads if self.compute_thread else torch.get_num_threads()

    def run(self, work: Callable[[], _Result], *, is_answer: bool = False) -> _Result:
        """Returns what `work`, a pass, returns.

        Raises:
            CambiumError: the work that this pass is of was broken off.
        """
        check_going_on()
        thread = self.compute_thread
        return thread.run(work, is_answer=is_answer) if thread else work()

    def expect_answers(self, expected: bool) -> None:
        """Says whether answers are under way, whose passes must not wait for long."""
        if self.compute_thread:
            self.compute_thread.expect_answers(expected)

    @contextmanager
    def rows(self, weights: RowWeights | None) -> Iterator[PreTrainedModel]:
        """Gives the model with these adapters on, and nobody else's pass in between."""
        with self.lock:
            self._active = weights
            try:
                yield self.model
            finally:
                self._active = None

    def targets(self, config: LoraConfig) -> dict[str, LinearSite]:
        """Returns the modules that `config` names.

        Raises:
            ModelError: a target names no linear module of this base.
        """
        if config.target_modules == (ALL_LINEAR,):
            return dict(self.sites)
        chosen = {}
        for name in config.target_modules:
            found = {p: s for p, s in self.sites.items() if p == name or p.endswith("." + name)}
            if not found:
                names = sorted({p.rsplit(".", 1)[-1] for p in self.sites})
                raise ModelError(
                    f"target module {name[:80]!r} is not in the base", mend=f"use {names}"
                )
            chosen |= found
        return chosen

    def _hook(self, path: str) -> Any:
        def add_update(
            module: nn.Module, args: tuple[Tensor, ...], output: Tensor
        ) -> Tensor | None:
            if self._active is None or path not in self._active.sites:
                return None
            for a, b in self._active.sites[path]:
                output = add_product(output, args[0] @ a, b)
            return output

        return add_update

    def _hook_embeddings(self, words: nn.Module) -> None:
        read: list[Tensor] = []

        def set_aside(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self._prompts is None:
                return None
            read[:] = args[:1]
            # The first word's embedding only keeps a place, which the prompt's own then takes.
            return (args[0].clamp(min=0), *args[1:])

        def lay(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            prompts = self._prompts
            return None if prompts is None else with_prompts(output, read.pop(), prompts)

        words.register_forward_pre_hook(set_aside)
        words.register_forward_hook(lay)

    @property
    def _prompts(self) -> Tensor | None:
        return self._active.prompts if self._active else None


def shared_rows(adapters: Sequence[Adapter]) -> RowWeights | None:
    """Returns weights for a batch in which every row has the same adapters, summed.

    They stay differentiable: what `a` and `b` of an adapter require, the pass gives. Returns None
    without adapters.
    """
    sites = {}
    for path in sorted({p for one in adapters for p in one.a}):
        members = [one for one in adapters if path in one.a]
        a = torch.cat([one.a[path] for one in members])
        b = torch.cat([one.b[path] * one.scaling for one in members], dim=1)
        sites[path] = ((a.T, b.T),)
    parts = _prompts(adapters)
    prompts = torch.cat(parts) if parts else None
    return RowWeights(sites=sites, prompts=prompts) if sites or parts else None


def stack_rows(adapters: Sequence[Sequence[Adapter]]) -> RowWeights | None:
    """Returns weights for a batch in which row i has the adapters `adapters[i]`, summed.

    Adapters of one row are concatenated along the rank, which is exact, and padded with zeros
    to whole slices. Rows without adapters get zeros, which leave their output bit-equal. Prompts
    of one row stand one after the other. Returns None when no row has an adapter.
    """
    if not any(adapters):
        return None
    needed = max(sum(one.rank for one in row) for row in adapters)
    num_slices = -(-needed // RANK_SLICE)
    paths = sorted({p for row in adapters for one in row for p in one.a})
    sites = {path: _stack_site(adapters, path, num_slices) for path in paths}
    return RowWeights(sites=sites, prompts=_stack_prompts([_prompts(row) for row in adapters]))


def _prompts(adapters: Sequence[Adapter]) -> list[Tensor]:
    return [one.prompt for one in adapters if one.prompt is not None]


def _stack_prompts(rows: Sequence[Sequence[Tensor]]) -> Tensor | None:
    """Returns each row's prompts as [B P D], zeros where a row has fewer; None without any."""
    if not any(rows):
        return None
    width = next(part.shape[1] for row in rows for part in row)
    longest = max(sum(map(len, row)) for row in rows)
    prompts = torch.zeros(len(rows), longest, width)
    for i, row in enumerate(rows):
        if row:
            own = torch.cat(list(row))
            prompts[i, : len(own)] = own
    return prompts


def add_product(output: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Returns `output + left @ right`; row by row where each row has its own `right`."""
    if right.dim() == 3:
        # Not `baddbmm`: its last bits depend on what the other rows add.
        return output + left @ right
    flat = torch.addmm(output.flatten(0, -2), left.flatten(0, -2), right)
    return flat.view_as(output)


def _stack_site(
    adapters: Sequence[Sequence[Adapter]], path: str, num_slices: int
) -> tuple[tuple[Tensor, Tensor], ...]:
    some = next(one for row in adapters for one in row if path in one.a)
    rank = num_slices * RANK_SLICE
    a = torch.stack([_side_by_side([one.a[path].T if path in one.a else one.rank for one in row],
                                   len(some.a[path].T), rank) for row in adapters])  # fmt: skip
    b = torch.stack([_side_by_side(
        [one.b[path] * one.scaling if path in one.b else one.rank for one in row],
        len(some.b[path]), rank).T for row in adapters])  # fmt: skip
    slices = zip(a.split(RANK_SLICE, dim=2), b.split(RANK_SLICE, dim=1), strict=True)
    return tuple((one.contiguous(), two.contiguous()) for one, two in slices)


def _side_by_side(parts: Sequence[Tensor | int], length: int, rank: int) -> Tensor:
    """Returns the parts [length r] as one [length rank]; a number stands for so many zeros."""
    if len(parts) == 1 and isinstance(parts[0], Tensor) and parts[0].shape[1] == rank:
        return parts[0]
    held = sum(part if isinstance(part, int) else part.shape[1] for part in parts)
    filled = [torch.zeros(length, p) if isinstance(p, int) else p for p in (*parts, rank - held)]
    return torch.cat(filled, dim=1)


def load_base(path: str | Path | None = None) -> BaseModel:
    """Loads a Hugging Face causal LM in fp32 from a folder or, where reachable, a hub id.

    Without a path, the bundled base. Only safetensors are read and no remote code is run.

    Raises:
        ModelError: nothing there, not a causal LM, or weights in another format.
    """
    source = str(path or BUNDLED)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{source} cannot be loaded as a causal language model: {error}",
            mend="give a folder with config.json, tokenizer and safetensors weights",
        ) from error
    name = "cambium-base" if path is None else Path(source).name or "model"
    return BaseModel(model, tokenizer, digest=_digest(model), name=name)


def _digest(model: nn.Module) -> str:
    """Returns a digest of all weights by name, shape and bytes, as they are in memory."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        total.update(tensor.contiguous().numpy().data)
    return "sha256:" + total.hexdigest()


def _linear_sites(model: PreTrainedModel) -> dict[str, LinearSite]:
    head = model.get_output_embeddings()
    sites = {}
    for path, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            sites[path] = LinearSite(path=path, d_in=module.in_features, d_out=module.out_features)
        elif isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
            sites[path] = LinearSite(path=path, d_in=d_in, d_out=d_out, transposed=True)
    if not sites:
        raise ModelError("the base has no linear modules to adapt", mend="use a transformer")
    return sites


def _context_length(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or 1024
    window = getattr(config, "sliding_window", None)
    # The engine prepares full causal masks, so a sliding window bounds what is served.
    return int(min(length, window) if window else length)
