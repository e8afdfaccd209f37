"""Llamas small enough for a test to make many of them, of every architecture variant."""

import contextlib
import cProfile
import dataclasses

import jax

from llama_jax.config import LlamaConfig, RopeScaling
from llama_jax.model import Model, initialize

# A small original length, so that 64 positions meet all three bands of the scaling (2/1/5).
SCALED = {"rope_theta": 1000.0, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)}

GQA = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=1024,
    **SCALED,
)
MHA = dataclasses.replace(GQA, num_key_value_heads=4)
MQA = dataclasses.replace(GQA, num_key_value_heads=1)


def model(config: LlamaConfig = GQA, seed: int = 0, dtype=jax.numpy.float32) -> Model:
    """Random weights, large enough for attention to be far from uniform."""
    made = Model(config, dtype)
    initialize(made, seed, std=0.3)
    return made


@contextlib.contextmanager
def function_calls():
    """Counts what Python calls meanwhile, as work that no busy machine changes.

    `with function_calls() as calls: ...`, then `calls[0]`.
    """
    calls = [0]
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield calls
    finally:
        profile.disable()
        calls[0] = sum(entry.callcount for entry in profile.getstats())


@contextlib.contextmanager
def compiled():
    """Lists what XLA compiles meanwhile: `with compiled() as programs: ...`."""
    programs: list[str] = []

    def listen(event: str, seconds: float, **details) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and listening:
            programs.append(str(details))

    listening = True
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        listening = False
