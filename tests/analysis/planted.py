"""A Llama of two layers whose weights are written by hand: it completes what it has seen before.

Head 0.0 looks one token back and writes which token it saw; head 1.0 looks for the position that
was written the present token, and says the token there. Heads 0.1 and 1.1 do nothing.
"""

import jax.numpy as jnp
import numpy as np

from llama_jax import Llama, LlamaConfig
from llama_jax.model import Model, parameters

V, H = 20, 128
D = 3 * V + 4  # the token, the token before, the answer, and a constant
TOKEN, BEFORE, ANSWER, ONE = slice(0, V), slice(V, 2 * V), slice(2 * V, 3 * V), 3 * V
FAST, SLOW = 12, 24  # pairs of dimensions that turn much with each position, and hardly at all
CONFIG = LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=4,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=H,
    rope_theta=1e9,
    max_position_embeddings=64,
)


def planted() -> Llama:
    model = Model(CONFIG)
    weights = {name: np.zeros(p.get_value().shape) for name, p in parameters(model).items()}
    for name, array in weights.items():
        if name.endswith("norm.weight"):
            array[:] = 1
    weights["embed_tokens.weight"][:, TOKEN] = np.eye(V)
    weights["embed_tokens.weight"][:, ONE] = 1
    weights["lm_head.weight"][:, ANSWER] = 20 * np.eye(V)

    # Queries are keys turned by one position: the score is largest one position back.
    angles = 1e9 ** (-2 * np.arange(FAST) / H)
    first = "layers.0.self_attn."
    weights[first + "k_proj.weight"][:FAST, ONE] = 40
    weights[first + "q_proj.weight"][:FAST, ONE] = 40 * np.cos(angles)
    weights[first + "q_proj.weight"][H // 2 : H // 2 + FAST, ONE] = -40 * np.sin(angles)
    weights[first + "v_proj.weight"][:V, TOKEN] = np.eye(V)
    weights[first + "o_proj.weight"][BEFORE, :V] = np.eye(V)

    # Tokens are matched in the pairs that stand still.
    second = "layers.1.self_attn."
    weights[second + "q_proj.weight"][SLOW : SLOW + V, TOKEN] = 40 * np.eye(V)
    weights[second + "k_proj.weight"][SLOW : SLOW + V, BEFORE] = 40 * np.eye(V)
    weights[second + "v_proj.weight"][:V, TOKEN] = np.eye(V)
    weights[second + "o_proj.weight"][ANSWER, :V] = np.eye(V)
    for name, parameter in parameters(model).items():
        parameter.set_value(jnp.asarray(weights[name], jnp.float32))
    return Llama(model)
