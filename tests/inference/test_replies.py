"""Text of answers that grow."""

import pytest

from selfparam_jax.inference.replies import ReplyText

TOKENS = {1: "Pa", 2: "ris", 3: " ", 4: "STO", 5: "P", 6: "STILL", 7: "", 9: "<end>"}
BYTES = {1: b"caf", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b" noir"}


def decode(ids):
    return "".join(TOKENS[token] for token in ids)


def pieces(reply, *parts):
    return [reply.add(part, last=n == len(parts) - 1) for n, part in enumerate(parts)]


def test_text_is_given_once_and_the_end_is_no_part_of_it():
    reply = ReplyText(decode, frozenset([9]))
    assert pieces(reply, [1], [2, 9, 1]) == ["Pa", "ris"]
    assert reply.ended and reply.count == 3


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_stop_is_left_out_however_it_arrives(cut):
    ids = [1, 3, 4, 5, 2]
    reply = ReplyText(decode, stop=("STOP",))
    given = [reply.add(ids[n : n + cut]) for n in range(0, len(ids), cut)]
    assert "".join(given) == "Pa " and reply.ended
    assert reply.add([1]) == ""


def test_what_only_began_like_a_stop_is_given_later():
    reply = ReplyText(decode, stop=("STOP", "ris!"))
    assert pieces(reply, [1, 4], [6]) == ["Pa", "STOSTILL"]
    assert not reply.ended
    assert pieces(ReplyText(decode, stop=("STOP",)), [4]) == ["STO"]


def test_half_a_character_waits_for_the_rest():
    reply = ReplyText(lambda ids: b"".join(BYTES[token] for token in ids).decode(errors="replace"))
    assert pieces(reply, [1, 2], [3], [4]) == ["caf", "é", " noir"]


@pytest.mark.parametrize("strip, expected", [(True, ["", "Pa", " ris"]), (False, ["", " Pa", " ris "])])
def test_white_space_around_an_answer(strip, expected):
    assert pieces(ReplyText(decode, strip=strip), [3], [1, 3], [2, 3]) == expected
