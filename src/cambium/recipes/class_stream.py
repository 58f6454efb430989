"""Class-incremental learning: tasks of new classes one after the other, one head for all.

The trainer of the classification streams. What it protects the old with is what the learner has:
a buffer, a teacher, EWC, SI; each can be off. Accuracies count in two ways: with all classes seen
so far to choose from (class-incremental), and with those of the text's own task only
(task-incremental), which is far easier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cambium.learn.objectives import si
from cambium.learn.objectives.ewc import online_fisher
from cambium.learn.objectives.proximal import normalised, pull_back


class Classifier(Protocol):
    """A model whose trained weights are a list of tensors."""

    def parameters(self) -> list[Tensor]:
        """Returns what is trained, the head's weights [C D] last."""
        ...

    def features(self, items: Tensor) -> Tensor:
        """Returns features [B D] of the items with these indices [B]; unit vectors."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassStreamConfig:
    """The stream and what protects the old.

    Args:
        classes_per_task, epochs, batch: of the new; as many old ones with a buffer.
        buffer_per_class: examples kept for each class; 0 is no replay.
        distill_weight: of what the model said before the task.
        separate: new examples choose among new classes only while they are learned (ER-ACE), so
            that they do not push the old ones down; in a stream without replay it would leave old
            and new uncompared, so it is for replay alone.
    """

    classes_per_task: int
    seed: int = 0
    epochs: int = 3
    batch: int = 32
    lr: float = 1e-3
    scale: float = 16.0
    buffer_per_class: int = 10
    distill_weight: float = 0.0
    temperature: float = 2.0
    ewc_strength: float = 0.0
    si_strength: float = 0.0
    separate: bool = True


@dataclass(frozen=True, kw_only=True)
class ClassStreamResult:
    """Test accuracies in percent: row k after task k, column j of task j <= k.

    Args:
        own_task: the same, choosing among the task's own classes only.
    """

    accuracy: list[list[float]]
    own_task: list[list[float]]

    def average(self) -> float:
        """Returns the mean over tasks after the last one."""
        return sum(self.accuracy[-1]) / len(self.accuracy[-1])

    def backward_transfer(self) -> float:
        """Returns the mean change of each task's accuracy from just after it to the end.

        The convention of Lopez-Paz and Ranzato (2017), eq. 3: over all tasks but the last.
        """
        last = self.accuracy[-1]
        own = [last[j] - self.accuracy[j][j] for j in range(len(last) - 1)]
        return sum(own) / max(1, len(own))

    def forgetting(self) -> float:
        """Returns the mean fall from each task's best accuracy to the end.

        The convention of Chaudhry et al. (2018), section 3: the best over all times before.
        """
        last = self.accuracy[-1]
        best = [max(row[j] for row in self.accuracy[j:-1]) for j in range(len(last) - 1)]
        return sum(b - x for b, x in zip(best, last, strict=False)) / max(1, len(best))


class ClassStream:
    """Trains a classifier on one task after the other.

    Args:
        train, test: the class of each item, shape [N]; items are indices into the data.
        where: index of the first test item in the data that `features` reads.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        train: Tensor,
        test: Tensor,
        where: int,
        config: ClassStreamConfig,
    ) -> None:
        self.model, self.train, self.test, self.config = model, train, test, config
        self.where = where
        self.chance = torch.Generator().manual_seed(config.seed)
        self.order = torch.randperm(int(train.max()) + 1, generator=self.chance)
        self.buffer: dict[int, Tensor] = {}
        self.said: dict[int, Tensor] = {}
        weights = self._flat()
        self.anchor = weights.clone()
        self.path, self.importance, self.fisher = (torch.zeros_like(weights) for _ in range(3))

    def run(self, say: Callable[[str], None]) -> ClassStreamResult:
        """Learns every task and measures all tasks seen after each."""
        tasks = self.order.split(self.config.classes_per_task)
        accuracy, own_task = [], []
        for k, classes in enumerate(tasks):
            self._learn(classes, seen=torch.cat(tasks[: k + 1]), first=k == 0)
            rows = [self._accuracy(c, torch.cat(tasks[: k + 1])) for c in tasks[: k + 1]]
            accuracy.append([row[0] for row in rows])
            own_task.append([row[1] for row in rows])
            say(f"task {k + 1} of {len(tasks)}: {sum(accuracy[-1]) / (k + 1):.1f} %")
        return ClassStreamResult(accuracy=accuracy, own_task=own_task)

    def joint(self, say: Callable[[str], None]) -> float:
        """Returns the accuracy after training on all classes at once: the bound."""
        self._learn(self.order, seen=self.order, first=True)
        found = self._accuracy(self.order, self.order)[0]
        say(f"all at once: {found:.1f} %")
        return found

    def _learn(self, classes: Tensor, *, seen: Tensor, first: bool) -> None:
        config = self.config
        items = _of(self.train, classes)
        self._start_classes(classes)
        if config.distill_weight and not first and not self.buffer:
            self._remember(items, seen[: len(seen) - len(classes)])
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=0.0)
        for _ in range(config.epochs):
            order = items[torch.randperm(len(items), generator=self.chance)]
            for part in order.split(config.batch):
                self._step(optimizer, part, classes, seen)
        self._end_task(items, classes, seen)

    def _step(
        self, optimizer: torch.optim.Optimizer, part: Tensor, classes: Tensor, seen: Tensor
    ) -> None:
        config = self.config
        old = self._old(len(part))
        logits = self._logits(torch.cat([part, old]))
        alone = config.separate and bool(len(old))
        loss = _loss(logits[: len(part)], self.train[part], classes if alone else seen)
        optimizer.zero_grad()
        watched = bool(config.si_strength)
        if len(old):
            loss = loss + _loss(logits[len(part) :], self.train[old], seen)
        loss.backward(retain_graph=bool(config.distill_weight and self.said))
        grad = self._flat_grad() if watched else None
        if config.distill_weight and self.said:
            held = old if len(old) else part
            own = logits[len(part) :] if len(old) else logits[: len(part)]
            (config.distill_weight * self._distillation(own, held)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        before = self._flat() if watched else None
        optimizer.step()
        if grad is not None and before is not None:
            self.path = si.along_path(self.path, grad, before, self._flat())
        self._pull_back()

    def _pull_back(self) -> None:
        config = self.config
        if not (config.ewc_strength or config.si_strength):
            return
        force = config.ewc_strength * normalised(self.fisher[None])
        force += config.si_strength * normalised(self.importance[None])
        rate = torch.tensor([[config.lr]])
        now = pull_back(self._flat()[None], self.anchor[None], force, rate)[0]
        with torch.no_grad():
            for p, value in zip(
                self.model.parameters(),
                now.split([p.numel() for p in self.model.parameters()]),
                strict=True,
            ):
                p.copy_(value.view_as(p))

    def _end_task(self, items: Tensor, classes: Tensor, seen: Tensor) -> None:
        config = self.config
        now = self._flat()
        if config.si_strength:
            self.importance += si.importance(self.path, now - self.anchor)
            self.path.zero_()
        if config.ewc_strength:
            chosen = items[torch.randperm(len(items), generator=self.chance)[:100]]
            self.fisher = online_fisher(self.fisher, self._fisher(chosen, seen), decay=0.9)
        self.anchor = now
        for c in classes.tolist():
            own = (self.train == c).nonzero()[:, 0]
            kept = torch.randperm(len(own), generator=self.chance)[: config.buffer_per_class]
            if len(kept):
                self.buffer[c] = own[kept]
        if config.distill_weight and self.buffer:
            self._remember(torch.cat(list(self.buffer.values())), seen)

    def _fisher(self, items: Tensor, seen: Tensor) -> Tensor:
        """Returns the mean squared gradient of each item's own log-probability, shape [P]."""
        total = torch.zeros_like(self.anchor)
        for item in items:
            for p in self.model.parameters():
                p.grad = None
            _loss(self._logits(item[None]), self.train[item][None], seen).backward()
            total += self._flat_grad().square()
        return total / len(items)

    @torch.no_grad()
    def _remember(self, items: Tensor, seen: Tensor) -> None:
        """Keeps what the model now says of the items, about the classes it knows."""
        for part in items.split(256):
            for item, logits in zip(part.tolist(), self._logits(part), strict=True):
                known = torch.full((logits.shape[0],), float("-inf"))
                known[seen] = logits[seen].float()
                self.said[item] = known

    def _distillation(self, logits: Tensor, items: Tensor) -> Tensor:
        teacher = torch.stack([self.said[i] for i in items.tolist()]) / self.config.temperature
        known = torch.isfinite(teacher)
        student = (logits / self.config.temperature).masked_fill(~known, float("-inf"))
        p, q = teacher.log_softmax(1), student.log_softmax(1)
        each = torch.where(known, p.exp() * (p - q), torch.zeros(())).sum(1)
        return self.config.temperature**2 * each.mean()

    def _old(self, number: int) -> Tensor:
        if not self.buffer:
            return torch.zeros(0, dtype=torch.long)
        kept = torch.cat(list(self.buffer.values()))
        return kept[torch.randint(len(kept), (number,), generator=self.chance)]

    @torch.no_grad()
    def _start_classes(self, classes: Tensor) -> None:
        """Begins each new class's weights at the mean of its features."""
        head = self.model.parameters()[-1]
        for c in classes.tolist():
            own = (self.train == c).nonzero()[:, 0][:64]
            head[c] = nn.functional.normalize(self.model.features(own).float().mean(0), dim=0)

    @torch.no_grad()
    def _accuracy(self, classes: Tensor, seen: Tensor) -> tuple[float, float]:
        items = _of(self.test, classes)
        right = own = 0
        for part in items.split(256):
            logits = self._logits(part + self.where)
            truth = self.test[part]
            right += int((_among(logits, seen).argmax(1) == truth).sum())
            own += int((_among(logits, classes).argmax(1) == truth).sum())
        return 100 * right / len(items), 100 * own / len(items)

    def _logits(self, items: Tensor) -> Tensor:
        head = nn.functional.normalize(self.model.parameters()[-1], dim=1)
        return self.config.scale * self.model.features(items).float() @ head.T

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def _flat_grad(self) -> Tensor:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.model.parameters()]
        return torch.cat([g.flatten() for g in grads]).clone()


def _of(labels: Tensor, classes: Tensor) -> Tensor:
    return torch.isin(labels, classes).nonzero()[:, 0]


def _among(logits: Tensor, classes: Tensor) -> Tensor:
    allowed = torch.full((logits.shape[1],), float("-inf"))
    allowed[classes] = 0
    return logits + allowed


def _loss(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    return nn.functional.cross_entropy(_among(logits, classes), labels)


def split_classes(labels: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Returns labels as numbers in alphabetical order, and their names."""
    names = sorted(set(labels))
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[label] for label in labels]), names
