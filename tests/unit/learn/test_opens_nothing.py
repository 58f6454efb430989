"""The learner opens no files, no sockets and no processes: held by Python's own audit events."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PREPARE = """
import sys, threading
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from cambium.learn.consolidate import ConsolidateConfig, consolidate, with_teacher
from cambium.learn.examples import Window
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn
from cambium.models.base import BaseModel
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.models.training_model import TrainingModel

torch.manual_seed(0)
base = BaseModel(
    LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)),
    None, digest="sha256:" + "0" * 64, name="tiny")
model = TrainingModel(base)
lora = fresh_lora(LoraConfig(r=2, lora_alpha=4), base.sites, seed=0)
windows = [Window(tokens=tuple(range(1, 30)))] * 3

def work(more=lambda: None):
    first = learn(model, Lesson(
        learner=Learner(lora=lora), windows=windows, config=LearnConfig(steps=2)))
    learn(model, Lesson(
        learner=Learner(lora=first.lora, optimizer=first.optimizer), windows=windows))
    config = ConsolidateConfig(epochs=2, num_teacher_tokens=8)
    consolidate(model, lora, windows, with_teacher(base, windows, (), config=config), config=config)
    more()

WATCHED = ("open", "socket.", "subprocess.", "os.", "shutil.", "tempfile.", "ctypes.dlopen",
           "urllib.", "http.", "ftplib.", "smtplib.", "pty.", "sqlite3.", "mmap.")
seen, watching = [], False

def hook(event, args):
    if watching and event.startswith(WATCHED):
        seen.append((event, str(args)[:200]))

sys.addaudithook(hook)
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    code = PREPARE + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_learning_and_consolidating_open_nothing() -> None:
    # Once unwatched: what libraries import when they are first used is not the learner's doing.
    # The last part is the control: the hook sees a file and a socket opened inside the same work.
    done = run("""
        import socket
        work()
        watching = True
        work()
        watching = False
        assert seen == [], seen
        watching = True
        work(lambda: (open(sys.executable, "rb").close(), socket.socket().close()))
        watching = False
        assert [event for event, _ in seen] == ["open", "socket.__new__"], seen
        print("watched")
    """)
    assert (done.returncode, done.stdout) == (0, "watched\n"), done.stdout + done.stderr
