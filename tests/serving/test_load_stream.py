"""Server-sent events as tokens with times, however the network cuts them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labcore.serving.load.stream import Answer, BadStream, lines, read_stream, tokens_in


def event(text: str = "x", finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}}


def body(*events: dict[str, Any], end: str = "data: [DONE]\n\n") -> bytes:
    return ("".join(f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in events) + end).encode()


async def cut(data: bytes, places: list[int]) -> AsyncIterator[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    for start, end in zip(edges, edges[1:], strict=False):
        yield data[start:end]


def read(data: bytes, places: list[int] | None = None) -> Answer:
    """An answer whose clock counts the events."""
    answer, ticks = Answer(), count()
    asyncio.run(read_stream(lines(cut(data, places or [])), answer, lambda: float(next(ticks))))
    return answer


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_text_cut_anywhere(texts: list[str], places: list[int]) -> None:
    answer = read(body(*(event(text) for text in texts), usage(len(texts))), places)
    assert answer.times == [float(index) for index in range(len(texts))]
    assert (answer.prompt_tokens, answer.output_tokens) == (7, len(texts))


def test_line_ends_of_text_are_no_line_ends_of_the_stream() -> None:
    assert len(read(body(event("a\u2028b\x85c\x0b"), event("d"))).times) == 2
    assert len(read(body(event(), event()).replace(b"\n", b"\r\n")).times) == 2


def test_comments_and_names_are_passed_over() -> None:
    assert len(read(b": ping\n\nevent: x\n" + body(event())).times) == 1


def test_a_last_event_without_text_is_a_token_only_if_the_server_counts_it() -> None:
    events = (event(), event(), event("", "length"))
    assert read(body(*events)).times == [0, 1]
    assert read(body(*events, usage(2))).times == [0, 1]
    assert read(body(*events, usage(3))).times == [0, 1, 2]
    assert read(body(event(), event("y", "stop"))).times == [0, 1]


def test_an_event_may_hold_no_text_or_several_tokens() -> None:
    assert tokens_in(event("")["choices"][0]) == 1  # the first half of a character
    assert tokens_in(event("abc", token_ids=[1, 2, 3])["choices"][0]) == 3
    assert tokens_in(event("ab", logprobs={"tokens": ["a", "b"]})["choices"][0]) == 2
    assert tokens_in(event("", "stop", token_ids=[1])["choices"][0]) == 1
    assert read(body(event("abc", token_ids=[1, 2, 3]), event())).times == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (body(event(), end=""), "disconnected"),
        (b"", "disconnected"),
        (b"<html>", "disconnected"),
        (b"data: [DONE]\n\n", "no tokens"),
        (b"data: 3\n\n", "bad stream"),
        (b'data: {"choices": \n\n', "bad stream"),
        (b'data: {"error": "out"}\n\n', "error in the stream"),
    ],
)
def test_a_stream_that_is_none_or_breaks_off(data: bytes, kind: str) -> None:
    with pytest.raises(BadStream) as broken:
        read(data)
    assert broken.value.kind == kind


def test_a_finish_reason_ends_an_answer_without_done() -> None:
    assert read(body(event("x", "length"), end="")).finished
