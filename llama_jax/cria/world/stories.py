"""Stories: a plot with a beginning, an event and an ending, and what frames it."""

from __future__ import annotations

from collections.abc import Callable

from llama_jax.cria.world.plots_feasts import (
    birthday,
    hide,
    leisure,
    market,
    race,
    snow,
    supper,
    wishes,
)
from llama_jax.cria.world.plots_mishaps import lost, noise, storm, strays, trouble
from llama_jax.cria.world.plots_neighbours import (
    cria,
    doors,
    meeting,
    post,
    present,
    rounds,
    school,
    travel,
    visit,
)
from llama_jax.cria.world.portraits import neighbours
from llama_jax.cria.world.teller import Teller

Plot = Callable[[Teller], list[str]]

PLOTS: tuple[Plot, ...] = (
    lost, storm, birthday, market, trouble, cria, post, strays, hide, meeting, leisure, visit,
    present, noise, supper, race, doors, snow, rounds, school, travel, wishes,
)  # fmt: skip

#: Plots that end with everyone going home.
HOMEWARD = (lost, market, birthday, trouble, cria, post, strays, hide, leisure, race, doors)


def story(t: Teller, plot: Plot | None = None) -> str:
    """A plot, sometimes after the people were named, or framed by where they live."""
    plot = plot or t.pick(PLOTS)
    lines = plot(t)
    if t.rng.random() < 0.15:
        lines.insert(0, neighbours(t, t.shuffled(t.people)))
    if plot in HOMEWARD and t.rng.random() < 0.4:
        people = t.people[:3]
        lines.insert(0, t.state_all(t.shuffled(people), "home"))
        lines.insert(-1, t.recall(t.pick(people), "home"))
    return " ".join(lines)
