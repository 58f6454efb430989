"""LoRA adapters as data, in PEFT's layout: weights, bytes, digest.

Shape letters: R rank, I inputs of a linear layer, O its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors.numpy import save
from torch import Tensor, nn

from cambium.core.canonical import canonical_json
from cambium.core.errors import DataError
from cambium.models.adapter import Adapter, read_fields, read_tensors
from cambium.models.adapter_bytes import AdapterBytes

ALL_LINEAR = "all-linear"
MAX_RANK = 64
_MAX_ALPHA = 4096
_PREFIX = "base_model.model."
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Fields of PEFT that, when set, make the same two matrices mean another function.
_OTHER_FUNCTIONS = frozenset({
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "bias", "exclude_modules",
    "kasa_config", "layer_replication", "layers_to_transform", "lora_bias", "megatron_config",
    "modules_to_save", "monteclora_config", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora",
    "velora_config",
})  # fmt: skip
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Rank, scale and targets of an adapter, named as in PEFT.

    Args:
        r: rank, 1 to 64.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        target_modules: names of linear modules, or `all-linear` for every one in the blocks.
    """

    r: int = 8
    lora_alpha: int = 16
    target_modules: tuple[str, ...] = (ALL_LINEAR,)

    @property
    def scaling(self) -> float:
        """Returns the factor on the update."""
        return self.lora_alpha / self.r


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One adapter's weights by module path: A [R I] and B [O R], fp32."""

    config: LoraConfig
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """Returns R."""
        return self.config.r

    @property
    def scaling(self) -> float:
        """Returns the factor on the updates."""
        return self.config.scaling

    @property
    def prompt(self) -> None:
        """Returns None: nothing stands before a sequence."""
        return None

    @property
    def num_virtual(self) -> int:
        """Returns 0: nothing stands before a sequence."""
        return 0

    def num_parameters(self) -> int:
        """Returns how many numbers the adapter holds."""
        return sum(t.numel() for half in (self.a, self.b) for t in half.values())

    def norms(self) -> dict[str, float]:
        """Returns the Frobenius norm of each module's update."""
        return dict(self._norms)

    @cached_property
    def _norms(self) -> dict[str, float]:
        return delta_norms(self)

    def oversized(self, model: nn.Module, limit: float) -> list[str]:
        """Returns which updates are not finite, or over `limit` of the weight they change."""
        found = []
        for path, norm in self.norms().items():
            weight = float(torch.linalg.norm(model.get_parameter(f"{path}.weight").float()))
            if not math.isfinite(norm) or norm > limit * weight:
                found.append(
                    f"{path}: update norm {norm:.3f} exceeds {limit:g} of the weight's {weight:.3f}"
                )
        return found

    def to_bytes(self, *, fan_in_fan_out: bool = False) -> AdapterBytes:
        """Returns the two PEFT files; the same weights always give the same bytes."""
        tensors = {}
        for path in sorted(self.a):
            for half, weights in (("A", self.a), ("B", self.b)):
                tensor = weights[path].detach().float().contiguous()
                tensors[f"{_PREFIX}{path}.lora_{half}.weight"] = tensor.numpy()
        targets = self.config.target_modules
        leaves = sorted({path.rsplit(".", 1)[-1] for path in self.a})
        names = targets if targets != (ALL_LINEAR,) else leaves
        config = {
            "base_model_name_or_path": None,
            "bias": "none",
            "fan_in_fan_out": fan_in_fan_out,
            "inference_mode": True,
            "lora_alpha": self.config.lora_alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.config.r,
            "target_modules": list(names),
            "task_type": "CAUSAL_LM",
            "use_rslora": False,
        }
        return AdapterBytes(config=canonical_json(config), weights=save(tensors))


@dataclass(frozen=True, kw_only=True)
class LinearSite:
    """One linear module an adapter may target: its path and sizes."""

    path: str
    d_in: int
    d_out: int
    transposed: bool = False  # GPT-2 keeps its linear weights as [I O]


def fresh_lora(config: LoraConfig, sites: Mapping[str, LinearSite], *, seed: int) -> Lora:
    """Returns an adapter that changes nothing yet: A uniform as in PEFT, B zero."""
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for path in sorted(sites):
        site = sites[path]
        bound = 1 / math.sqrt(site.d_in)  # kaiming uniform with a = sqrt(5)
        uniform = torch.rand(config.r, site.d_in, generator=generator)
        a[path] = (uniform * 2 - 1) * bound
        b[path] = torch.zeros(site.d_out, config.r)
    return Lora(config=config, a=a, b=b)


def concatenated(adapters: Sequence[Lora]) -> Lora:
    """Returns one adapter that does what all of `adapters` do together, exactly.

    Ranks are laid side by side and each scale goes into its B, so the result's own scale is 1.
    A module that one of them leaves alone gets zeros there.
    """
    r = sum(lora.config.r for lora in adapters)
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for path in sorted({path for lora in adapters for path in lora.a}):
        some = next(lora for lora in adapters if path in lora.a)
        d_in, d_out = some.a[path].shape[1], some.b[path].shape[0]
        halves = [
            (lora.a[path], lora.b[path] * lora.config.scaling)
            if path in lora.a
            else (torch.zeros(lora.config.r, d_in), torch.zeros(d_out, lora.config.r))
            for lora in adapters
        ]
        a[path] = torch.cat([half[0] for half in halves])
        b[path] = torch.cat([half[1] for half in halves], dim=1)
    targets = tuple(sorted({name for lora in adapters for name in lora.config.target_modules}))
    if ALL_LINEAR in targets:
        targets = (ALL_LINEAR,)
    return Lora(config=LoraConfig(r=r, lora_alpha=r, target_modules=targets), a=a, b=b)


def to_bytes(adapter: Adapter, *, fan_in_fan_out: bool = False) -> AdapterBytes:
    """Returns an adapter's two PEFT files, whatever its kind."""
    return adapter.to_bytes(fan_in_fan_out=fan_in_fan_out)


def from_bytes(data: AdapterBytes, sites: Mapping[str, LinearSite]) -> Lora:
    """Reads an adapter and checks it against the base's linear modules.

    Raises:
        DataError: not plain PEFT LoRA, other modules than it declares or the base has, other
            shapes, or numbers that are not finite.
    """
    config = read_config(data.config)
    tensors = read_tensors(data.weights)
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for key in sorted(tensors):
        path, half = _split_key(key)
        if path not in sites or not _is_target(path, config):
            raise DataError(
                f"adapter holds {path[:120]!r}, which it does not declare or the base lacks",
                mend="train the adapter on this base",
            )
        site = sites[path]
        shape = (config.r, site.d_in) if half == "A" else (site.d_out, config.r)
        _check_weight(key, tensors[key], shape)
        (a if half == "A" else b)[path] = tensors[key].float()
    if not a or a.keys() != b.keys():
        raise DataError("adapter halves are missing", mend="send both lora_A and lora_B")
    return Lora(config=config, a=a, b=b)


def delta_norms(lora: Lora) -> dict[str, float]:
    """Returns the Frobenius norm of each module's update, without forming it."""
    alike: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for path, a in lora.a.items():
        alike.setdefault((a.shape, lora.b[path].shape), []).append(path)
    norms: dict[str, float] = {}
    for paths in alike.values():
        a = torch.stack([lora.a[path] for path in paths]).double()
        b = torch.stack([lora.b[path] for path in paths]).double()
        squared = ((a @ a.transpose(1, 2)) * (b.transpose(1, 2) @ b)).sum(dim=(1, 2)).clamp_min(0)
        norms.update(zip(paths, (lora.config.scaling * squared.sqrt()).tolist(), strict=True))
    return {path: norms[path] for path in lora.a}


def _split_key(key: str) -> tuple[str, str]:
    for half in ("A", "B"):
        suffix = f".lora_{half}.weight"
        if key.startswith(_PREFIX) and key.endswith(suffix):
            return key[len(_PREFIX) : -len(suffix)], half
    raise DataError(f"{key!r} is not a LoRA weight", mend="send plain LoRA as PEFT writes it")


def _is_target(path: str, config: LoraConfig) -> bool:
    return config.target_modules == (ALL_LINEAR,) or any(
        path == name or path.endswith("." + name) for name in config.target_modules
    )


def _check_weight(key: str, tensor: Tensor, shape: tuple[int, int]) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype not in _FLOATS:
        raise DataError(
            f"{key} is {tuple(tensor.shape)} {tensor.dtype}, not {shape} float",
            mend="train the adapter on this base",
        )
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"{key} holds numbers that are not finite", mend="train it again")


def read_config(data: bytes) -> LoraConfig:
    """Returns what `adapter_config.json` says of a plain LoRA.

    Raises:
        DataError: it is not JSON, not of a LoRA, or of one that computes something else.
    """
    raw = read_fields(data)
    if raw.get("peft_type") != "LORA":
        raise DataError("adapter_config.json is not of a LoRA", mend="send it as PEFT writes it")
    odd = sorted(k for k in _OTHER_FUNCTIONS if raw.get(k) not in (None, False, "none", {}, []))
    if raw.get("init_lora_weights", True) not in _PLAIN_STARTS:
        odd.append("init_lora_weights")  # such starts also change the base's weights
    if odd:
        raise DataError(f"only plain LoRA is supported, not {odd}", mend="train a plain one")
    r, alpha, targets = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if type(r) is not int or not 1 <= r <= MAX_RANK:
        raise DataError(f"rank is not in 1..{MAX_RANK}", mend="train with another rank")
    if isinstance(alpha, float) and alpha.is_integer():
        alpha = int(alpha)
    if type(alpha) is not int or not 1 <= alpha <= _MAX_ALPHA:
        raise DataError(f"lora_alpha is no whole number in 1..{_MAX_ALPHA}", mend="fold it into B")
    if targets == ALL_LINEAR:
        targets = [ALL_LINEAR]
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) for t in targets):
        raise DataError("target_modules is not a list of names", mend="list the modules by name")
    return LoraConfig(r=r, lora_alpha=alpha, target_modules=tuple(sorted(set(targets))))
