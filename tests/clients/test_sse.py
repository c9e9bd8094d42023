import pytest

from flamingo_client.sse import LineSplitter, ServerSentEvent, SSEDecoder

TWO = [ServerSentEvent("token", "1\n2"), ServerSentEvent("message", "é\u2028")]
TWO_BYTES = "event: token\ndata: 1\ndata: 2\n\n: ping\n\ndata: é\u2028\n\n".encode()


def decode(content: bytes, size: int | None = None) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    size = size or len(content)
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def test_an_event_has_its_name_and_data() -> None:
    assert decode(b"event: start\ndata: {}\n\n") == [ServerSentEvent("start", "{}")]


def test_data_of_several_lines_is_joined_by_newlines() -> None:
    assert decode(b"data: a\ndata:\ndata: b\n\n") == [ServerSentEvent("message", "a\n\nb")]


def test_the_name_does_not_leak_into_the_next_event() -> None:
    events = decode(b"event: start\ndata: 1\n\ndata: 2\n\n")
    assert [event.event for event in events] == ["start", "message"]


def test_comments_are_ignored() -> None:
    assert decode(b": keep-alive\n\n:\ndata: a\n: in between\n\n") == [
        ServerSentEvent("message", "a")
    ]


def test_an_event_without_data_is_not_delivered() -> None:
    assert decode(b"event: start\n\ndata: a\n\n") == [ServerSentEvent("message", "a")]


def test_an_event_that_no_blank_line_ends_is_not_delivered() -> None:
    assert decode(b"data: a\n\ndata: cut of") == [ServerSentEvent("message", "a")]


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert decode(b"data:  a: b\n\n") == [ServerSentEvent("message", " a: b")]
    assert decode(b"data:a\n\n") == [ServerSentEvent("message", "a")]


def test_a_field_without_a_colon_has_an_empty_value() -> None:
    assert decode(b"data\n\n") == [ServerSentEvent("message", "")]


def test_unknown_fields_are_ignored() -> None:
    assert decode(b"id: 3\nretry: 5\nnew: x\ndata: a\n\n") == [ServerSentEvent("message", "a")]


def test_a_byte_order_mark_is_dropped_once() -> None:
    assert decode("\ufeffdata: \ufeff\n\n".encode()) == [ServerSentEvent("message", "\ufeff")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_three_line_ends_mean_the_same(end: bytes) -> None:
    assert decode(TWO_BYTES.replace(b"\n", end)) == TWO


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", range(1, 20))
def test_chunks_may_break_anywhere(size: int, end: bytes) -> None:
    assert decode(TWO_BYTES.replace(b"\n", end), size) == TWO


def test_a_line_that_ends_in_cr_is_not_held_back() -> None:
    lines = LineSplitter()
    assert lines.feed(b"a\r") == ["a"]
    assert lines.feed(b"") == []
    assert lines.feed(b"\nb\n") == ["b"]


def test_separators_that_json_may_hold_do_not_end_a_line() -> None:
    line = "data: a\u2028b\u2029c\x85d\x0be"
    assert LineSplitter().feed(f"{line}\n".encode()) == [line]


def test_bytes_that_are_no_utf8_do_not_stop_the_stream() -> None:
    assert decode(b"data: \xff\n\n") == [ServerSentEvent("message", "\ufffd")]
