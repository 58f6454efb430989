"""The bundled tokenizer: byte-fallback BPE that restores any text exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
MODE_TAGS = ("<AI>", "</AI>", "<AI_quoting_human>", "</AI_quoting_human>", "<image>")
SPECIAL_TOKENS = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT, END, *MODE_TAGS)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# A word with the space before it, one digit, punctuation, line breaks, or a run of spaces
# (so that one level of indentation is one token).
_PIECES = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\n+|[^\S\n]+(?=[^\S\n])|\s"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Size of the vocabulary and of the character alphabet learned before bytes take over."""

    vocab_size: int = 8192
    alphabet_size: int = 160


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    """Returns a byte-fallback BPE tokenizer learned from `texts`.

    Every string survives `decode(encode(s)) == s`: characters outside the alphabet become
    their UTF-8 bytes, and spaces are kept as they are instead of being replaced by a mark.

    Source: Sennrich et al. (2016); byte fallback after SentencePiece.
    """
    bpe = Tokenizer(models.BPE())
    pre = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    bpe.pre_tokenizer = pre
    num_reserved = len(SPECIAL_TOKENS) + 256
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - num_reserved,
        limit_alphabet=config.alphabet_size,
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    names = [*SPECIAL_TOKENS, *(f"<0x{b:02X}>" for b in range(256))]
    names += [t for t, _ in sorted(learned["vocab"].items(), key=lambda kv: kv[1])]
    fallback = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[tuple(pair) for pair in learned["merges"]],
            byte_fallback=True,
            unk_token=PAD,
        )
    )
    fallback.pre_tokenizer = pre
    fallback.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fallback.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=fallback,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, END, *MODE_TAGS],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
