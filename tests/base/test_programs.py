import pytest

from llama_jax import Llama
from llama_jax.base import programs as module
from tests.tiny import GQA, compiled

pytestmark = pytest.mark.skipif(not module.MAPS.exists(), reason="memory maps are Linux's")


def maps():
    return module.MAPS.read_bytes().count(b"\n")


def test_programs_are_let_go_before_there_are_no_maps_left(monkeypatch, tmp_path):
    room = maps() + 1500
    limit = tmp_path / "max_map_count"
    limit.write_text(str(int(room / module.SHARE)))
    monkeypatch.setattr(module, "LIMIT", limit)
    monkeypatch.setattr(module.programs, "next_look", 0)
    llama, most = Llama.random(GQA), 0
    for length in range(1, 60):
        llama.run([1] * length, ("pattern", "resid_post"))
        most = max(most, maps())
    # Between two looks at least sixteen programs may be compiled.
    assert most < room + 16 * 90
    monkeypatch.setattr(module.programs, "next_look", 0)


def test_where_there_is_room_nothing_is_forgotten():
    llama = Llama.random(GQA)
    llama.run([1, 2, 3])
    module.programs.next_look = 0
    llama.run([1, 2, 3])
    with compiled() as again:
        llama.run([3, 2, 1])
    assert not again and module.programs.next_look > module.programs.compiled


@pytest.mark.soak
def test_three_thousand_prompts_of_all_lengths_in_one_process():
    llama, most = Llama.random(GQA), 0
    for n in range(3000):
        llama.run([1] * (1 + n % 1000), ("pattern", 0), logits="last")
        most = max(most, maps())
    assert most < 0.8 * int(module.LIMIT.read_text())
