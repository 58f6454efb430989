"""Split CIFAR-10: two classes after two others, with a small network that never saw a label before.

The frozen base is a convolutional network that learned to tell how far a picture is turned
(Gidaris et al., 2018), from the training pictures and without their labels. Its adapters are
low-rank convolutions.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from cambium.core.errors import DataError
from cambium.recipes.class_stream import ClassStream, ClassStreamConfig
from cambium.recipes.data import data_folder

WIDTHS = (32, 64, 128)
TURN_EPOCHS = 3
RANK = 16


class Convolutions(nn.Module):
    """Three blocks of convolution, norm and pooling; features are the mean over the picture."""

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((3, *WIDTHS), WIDTHS, strict=False)
        self.blocks = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in sizes)
        self.norms = nn.ModuleList(nn.GroupNorm(8, o) for o in WIDTHS)
        self.adapters = nn.ModuleList()

    def adapt(self) -> list[Tensor]:
        """Adds adapters that change nothing yet; returns their weights."""
        for i, o in zip((3, *WIDTHS), WIDTHS, strict=False):
            down = nn.Conv2d(i, RANK, 3, padding=1, bias=False)
            up = nn.Conv2d(RANK, o, 1, bias=False)
            nn.init.zeros_(up.weight)
            self.adapters.append(nn.Sequential(down, up))
        return list(self.adapters.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Takes pictures [B 3 32 32], returns features [B 128]."""
        for i, (block, norm) in enumerate(zip(self.blocks, self.norms, strict=True)):
            out = block(x)
            if len(self.adapters):
                out = out + self.adapters[i](x)
            x = nn.functional.max_pool2d(nn.functional.gelu(norm(out)), 2)
        return x.mean((2, 3))


class Pictures:
    """The base with adapters, or all of its weights, and a head of unit vectors."""

    def __init__(self, data: Tensor, *, seed: int, adapters: bool) -> None:
        self._data = data
        torch.manual_seed(seed)
        self._net = copy.deepcopy(_base())
        own = self._net.adapt() if adapters else list(self._net.parameters())
        head = torch.zeros(10, WIDTHS[-1])
        self._weights = [*own, head]
        for weight in self._weights:
            weight.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Returns the adapters or the network, and the head [10 128]."""
        return self._weights

    def features(self, items: Tensor) -> Tensor:
        """Returns unit vectors [B 128]."""
        return nn.functional.normalize(self._net(self._data[items]), dim=1)


def stream(config: ClassStreamConfig, *, adapters: bool = True) -> ClassStream:
    """Returns the stream.

    Raises:
        DataError: the data is not there.
    """
    pictures, train, test = _data()
    model = Pictures(pictures, seed=config.seed, adapters=adapters)
    return ClassStream(model, train=train, test=test, where=len(train), config=config)


@lru_cache(maxsize=1)
def _data() -> tuple[Tensor, Tensor, Tensor]:
    path = data_folder() / "vision" / "cifar10_subset.npz"
    if not path.is_file():
        raise DataError(f"{path} is missing", mend="set CAMBIUM_DATA to the folder with real data")
    found = np.load(path)
    pictures = np.concatenate([_plain(found["x_train_delta"]), _plain(found["x_test_delta"])])
    scaled = torch.from_numpy(pictures).float().div_(127.5).sub_(1)
    labels = [torch.from_numpy(found[name]).long() for name in ("y_train", "y_test")]
    return scaled, labels[0], labels[1]


def _plain(deltas: np.ndarray) -> np.ndarray:
    """Returns uint8 pictures [N 3 32 32] from stored differences; sums are modulo 256."""
    x = deltas.cumsum(2, dtype="uint8").cumsum(3, dtype="uint8")
    x[:, 0] += x[:, 1]
    x[:, 2] += x[:, 1]
    return x


@lru_cache(maxsize=1)
def _base() -> Convolutions:
    """Returns the network, trained to tell turns, frozen."""
    pictures, train, _ = _data()
    chance = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net, head = Convolutions(), nn.Linear(WIDTHS[-1], 4)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(TURN_EPOCHS):
        for part in torch.randperm(len(train), generator=chance).split(128):
            turns = torch.randint(4, (len(part),), generator=chance)
            turned = torch.stack(
                [torch.rot90(pictures[i], int(t), (1, 2)) for i, t in zip(part, turns, strict=True)]
            )
            loss = nn.functional.cross_entropy(head(net(turned)), turns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.requires_grad_(False)
