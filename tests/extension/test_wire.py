"""What crosses between Python and a page."""

import json
import re

import numpy as np
import pytest

from llama_loupe.wire import dumped, name_of, pack, safe

HOSTILE = ["</script>", "<img src=x onerror=alert(1)>", "</template>", "\u2028", "\udc80", "\u202e"]


def test_every_kind_of_number_arrives_as_it_was_sent():
    for dtype in (np.float32, np.float64, np.uint8, np.uint16, np.int32):
        sent = np.arange(6, dtype=dtype).reshape(2, 3)
        buffers: list[bytes] = []
        [place] = pack([sent], buffers)
        assert place == {"$array": 0, "dtype": sent.dtype.name, "shape": [2, 3]}
        np.testing.assert_array_equal(np.frombuffer(buffers[0], dtype).reshape(2, 3), sent)


def test_a_big_endian_and_a_transposed_array_are_put_in_order():
    sent = np.arange(6, dtype=">f4").reshape(2, 3).T
    buffers: list[bytes] = []
    pack(sent, buffers)
    np.testing.assert_array_equal(np.frombuffer(buffers[0], "<f4").reshape(3, 2), sent)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan")])
def test_json_has_no_nan(number):
    with pytest.raises(ValueError, match="send numbers like these in an array"):
        pack({"a": number}, [])


def test_a_dtype_that_a_page_does_not_know_is_refused():
    with pytest.raises(TypeError, match="complex64"):
        pack(np.zeros(2, np.complex64), [])


def test_no_text_ends_the_script_that_holds_it():
    text = dumped({"tokens": pack([*HOSTILE, "a" * 10_000], [])})
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text)["tokens"][0] == "</script>"


def test_lone_surrogates_and_long_texts_can_be_sent():
    assert safe("\udc80").encode() == b"\\udc80"
    assert len(safe("x" * 10_000)) == 300


def test_a_question_has_one_name_whatever_the_order_of_its_arguments():
    one = name_of([0], "tile", {"b": 1, "a": [1, 2]})
    assert one == name_of((0,), "tile", {"a": [1, 2], "b": 1}) == '[[0],"tile",{"a":[1,2],"b":1}]'
