from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cambium.models.packing import BLOCK, IGNORED, Segment, pack, pass_length

LENGTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 70)), min_size=1, max_size=12)


def segments_of(lengths: list[tuple[int, int]]) -> list[Segment]:
    """Segments whose tokens and targets are all different; adapters in order."""
    made = []
    for i, (adapter, length) in enumerate(sorted(lengths)):
        tokens = list(range(1000 * i + 1, 1000 * i + 1 + length))
        made.append(Segment(adapter=adapter, tokens=tokens, targets=[t + 1 for t in tokens]))
    return made


@given(lengths=LENGTHS)
def test_every_token_is_there_once_with_its_place_and_its_adapter(
    lengths: list[tuple[int, int]],
) -> None:
    segments = segments_of(lengths)
    packed = pack(segments)
    size = len(packed.tokens)
    assert size == pass_length(size) and packed.chunk % BLOCK == 0
    used = len(packed.owners) * packed.chunk
    assert used <= size == pass_length(used)
    owners = packed.owners.repeat_interleave(packed.chunk)
    at = 0
    for segment in segments:
        at = packed.tokens.tolist().index(segment.tokens[0], at)
        own = slice(at, at + len(segment.tokens))
        assert packed.tokens[own].tolist() == list(segment.tokens)
        assert packed.targets[own].tolist() == list(segment.targets)
        assert packed.positions[own].tolist() == list(range(len(segment.tokens)))
        assert set(owners[own].tolist()) == {segment.adapter}
    assert packed.num_targets == sum(len(s.tokens) for s in segments)
    real = size - len(packed.padding)
    assert real == packed.num_targets and (packed.targets[packed.padding] == IGNORED).all()


@given(lengths=LENGTHS)
def test_lanes_lead_there_and_slots_back(lengths: list[tuple[int, int]]) -> None:
    segments = segments_of(lengths)
    packed = pack(segments)
    lanes = packed.tokens[packed.lanes]
    for row, segment in zip(lanes.tolist(), segments, strict=True):
        assert row[: len(segment.tokens)] == list(segment.tokens)
    back = lanes.flatten()[packed.slots]
    back[packed.padding] = 0
    assert torch.equal(back, packed.tokens)
    past = torch.zeros(lanes.numel(), dtype=torch.bool)
    past[packed.copies] = True
    lengths_found = (~past.view(lanes.shape)).sum(1).tolist()
    assert lengths_found == [len(s.tokens) for s in segments]


def test_what_follows_a_prompt_sees_it_and_counts_on() -> None:
    ignored = [IGNORED, IGNORED, IGNORED]
    packed = pack([
        Segment(adapter=0, tokens=[5, 6, 7], targets=ignored),
        Segment(adapter=0, tokens=[8, 9], targets=[9, 10], after=0),
        Segment(adapter=0, tokens=[11], targets=[12], after=0),
    ])  # fmt: skip
    assert packed.tokens[:6].tolist() == [5, 6, 7, 8, 9, 11]
    assert packed.positions[:6].tolist() == [0, 1, 2, 3, 4, 3]
    lanes = packed.tokens[packed.lanes].tolist()
    assert len(lanes) == 2 and packed.is_shared
    assert lanes[0][:5] == [5, 6, 7, 8, 9] and lanes[1][:4] == [5, 6, 7, 11]
    assert packed.tokens[packed.lanes].flatten()[packed.slots[:6]].tolist() == [5, 6, 7, 8, 9, 11]


def test_equal_shares_need_no_gathering() -> None:
    packed = pack(segments_of([(g, 32) for g in range(4)]))
    assert packed.is_grid and packed.in_order and packed.chunk == 32
    assert packed.owners.tolist() == [0, 1, 2, 3]
    one = pack(segments_of([(0, 7), (0, 9), (0, 50)]))
    assert one.chunk == len(one.tokens) and one.in_order


def test_chunks_are_as_long_as_costs_least() -> None:
    nearly = pack(segments_of([(0, 32), (1, 33), (2, 48)]))
    assert nearly.in_order and nearly.chunk == 48 and len(nearly.tokens) == 160
    far = pack(segments_of([*((g, 32) for g in range(8)), (8, 300)]))
    assert far.chunk == 32 and not far.in_order
    assert far.owners.tolist() == [*range(8), *[8] * 10]


@given(lengths=LENGTHS)
def test_chunks_hold_the_tokens_of_their_owner_and_padding(lengths: list[tuple[int, int]]) -> None:
    packed = pack(segments_of(lengths))
    chunks = packed.in_chunks(packed.tokens[:, None].contiguous())
    assert chunks.shape == (len(packed.owners), packed.chunk, 1)
    assert torch.equal(chunks, packed.in_chunks(packed.tokens[None, :, None].contiguous()))
    real = torch.ones(len(packed.tokens), dtype=torch.bool)
    real[packed.padding] = False
    assert not real[chunks.numel() :].any()


def test_a_recorded_length_is_kept() -> None:
    segments = segments_of([(0, 20)])
    assert len(pack(segments).tokens) == 32
    assert len(pack(segments, length=96).tokens) == 96


def test_passes_come_in_few_lengths() -> None:
    found = sorted({pass_length(n) for n in range(1, 2049)})
    assert found[:12] == [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256]
    assert found[12:] == [320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048]
    assert all(n <= pass_length(n) <= max(n + 15, 1.25 * n) for n in range(1, 2049))
