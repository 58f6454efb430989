from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cambium.models.engine import TokenEvent
from cambium.models.sampling import TokenLogprob
from cambium.serve.api.openai.choices import Choice, Piece
from cambium.serve.api.openai.token_texts import TokenTexts


def event(token_id: int) -> TokenEvent:
    return TokenEvent(token_id=token_id, logprob=TokenLogprob(token_id=token_id, logprob=-1.0))


def pieces(choice: Choice, ids: list[int]) -> list[Piece]:
    found = []
    for one in [*map(event, ids), TokenEvent(finish="length")]:
        piece = choice.feed(one)
        if piece is not None:
            found.append(piece)
        if choice.finish:
            break
    return found


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@given(ids=st.lists(st.integers(0, 419), max_size=20))
def test_without_stops_every_token_is_listed_once_where_its_text_begins(
    ids: list[int], tokenizer: Any
) -> None:
    found = pieces(Choice(0, TokenTexts(tokenizer)), ids)
    tokens = [t for p in found for t in p.tokens]
    assert [t.token_id for t in tokens] == ids
    assert [t.offset for t in tokens] == sorted(t.offset for t in tokens)
    length = len("".join(p.text for p in found))
    assert all(t.offset <= length for t in tokens)
    assert [p.finish for p in found][-1] == "length"


def test_a_stop_ends_the_text_and_the_list_but_its_tokens_count(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "the tree grows a thin layer")
    choice = Choice(0, TokenTexts(tokenizer), stops=["s a thin"])
    found = pieces(choice, ids)
    assert "".join(p.text for p in found) == "the tree grow"
    assert found[-1].finish == choice.finish == "stop"
    assert all(t.offset < len("the tree grow") for p in found for t in p.tokens)
    assert len([t for p in found for t in p.tokens]) < choice.num_tokens < len(ids)


def test_a_piece_of_a_stop_at_the_end_is_text(tokenizer: Any) -> None:
    choice = Choice(0, TokenTexts(tokenizer), stops=["year after"])
    found = pieces(choice, ids_of(tokenizer, "every year"))
    assert "".join(p.text for p in found) == "every year"
    assert choice.finish == "length"


def test_a_listed_end_token_is_the_last_and_has_no_text(tokenizer: Any) -> None:
    choice = Choice(0, TokenTexts(tokenizer), end_ids=frozenset({2}))
    found = pieces(choice, [*ids_of(tokenizer, "the"), 2, *ids_of(tokenizer, "tree")])
    assert "".join(p.text for p in found) == "the"
    assert found[-1].tokens[-1].token_id == 2
    assert choice.finish == "stop"


@given(
    ids=st.lists(st.integers(0, 419), max_size=20),
    stops=st.lists(st.text(alphabet="the yar\n", min_size=1, max_size=3), max_size=4),
)
def test_stops_cut_text_and_list_and_change_nothing_before(
    ids: list[int], stops: list[str], tokenizer: Any
) -> None:
    texts = TokenTexts(tokenizer)
    free, cut = pieces(Choice(0, texts), ids), pieces(Choice(0, texts, stops=stops), ids)
    free_tokens = [t for p in free for t in p.tokens]
    cut_tokens = [t for p in cut for t in p.tokens]
    text = "".join(p.text for p in cut)
    assert "".join(p.text for p in free).startswith(text)
    assert free_tokens[: len(cut_tokens)] == cut_tokens
    if cut[-1].finish == "stop":
        assert cut_tokens == [t for t in free_tokens if t.offset < len(text)]
