from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cambium.serve.api.openai.stops import StopMatcher

LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=0, max_size=4)


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        out += text
        if stopped:
            return out, True
    return out + matcher.finish(), False


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)], True
    return text, False


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_the_cut_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    assert shown(pieces, stops) == reference("".join(pieces), stops)


def test_a_beginning_that_leads_nowhere_is_given_out() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.feed("yes\n") == ("yes", False)
    assert matcher.feed("\nUs") == ("", False)
    assert matcher.feed("e it") == ("\n\nUse it", False)


def test_the_first_to_be_complete_wins() -> None:
    assert StopMatcher(["abc", "b"]).feed("xabc") == ("xa", True)
    assert StopMatcher(["b", "ab"]).feed("xab") == ("x", True)
