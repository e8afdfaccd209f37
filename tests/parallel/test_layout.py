"""How tensors are laid out on every mesh, read off the lowered programs: nothing is compiled."""

import collections
import re

import jax
import numpy as np
import pytest

from llama_jax import Llama
from llama_jax.capture import taps_for, wanted
from llama_jax.generate import advance
from llama_jax.model import empty_cache
from llama_jax.points import POINTS
from llama_jax.run import _program
from tests.parallel.meshes import CACHE, CONFIG, MESHES, cuts_of

pytestmark = pytest.mark.usefixtures("many_devices")

CONSTRAINT = re.compile(
    r"sdy\.sharding_constraint %\S+ <@mesh\w*, \[(.*?)\]> : tensor<([\dx]+)x[a-z]\w*>"
)


def constraints(lowered) -> dict[tuple[int, ...], set[str]]:
    """By the shape of a tensor: along which axes of the mesh it is cut, as in `CACHE`."""
    found = collections.defaultdict(set)
    for dimensions, shape in CONSTRAINT.findall(lowered.as_text()):
        axes = re.findall(r"\{(.*?)\}", dimensions)
        cuts = " ".join("+".join(re.findall(r'"(\w+)"', axis)) or "-" for axis in axes)
        found[tuple(map(int, shape.split("x")))].add(cuts)
    return found


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: mesh or "one device")
def test_every_point_is_laid_out_by_its_axes(mesh):
    leaves, structure = jax.tree.flatten(Llama.abstract(CONFIG, "float32", mesh).model)
    tokens, lengths = np.zeros((8, 28), np.int32), np.full(8, 28, np.int32)
    taps = taps_for(wanted("*", CONFIG.num_hidden_layers), {}, CONFIG, lengths)
    found = constraints(_program.lower(structure, tuple(leaves), tokens, lengths, taps, "all"))
    expected = collections.defaultdict(set)
    for point in POINTS:
        expected[point.shape(CONFIG, 8, 28, 28)].add(cuts_of(point.axes, mesh))
    # A query reads all keys and values: these are gathered for attention.
    expected[8, 28, 8, 8].add(cuts_of("B S K H", mesh))
    assert {shape: found[shape] for shape in expected} == expected


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: mesh or "one device")
def test_the_cache_is_laid_out_in_a_step(mesh):
    llama = Llama.abstract(CONFIG, "float32", mesh)
    leaves, structure = jax.tree.flatten(llama.model)
    cache = empty_cache(CONFIG, 3, 128, np.float32, llama.mesh)
    new = np.zeros((3, 1), np.int32), np.ones(3, np.int32)
    found = constraints(advance.lower(structure, tuple(leaves), cache, *new, {}))
    rows, positions, heads, size = cache.keys[0].shape
    assert found[rows, positions, heads, size] == {CACHE[mesh][0]}
