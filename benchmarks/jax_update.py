"""SoftGAC's update against the same update in JAX, by CPU-seconds of one core: ``python benchmarks/jax_update.py``.

The authors' code is in JAX. This is the paper's update written anew in it, one jitted program for a call of many updates, with
optax's Adam (extra `bench`). First both get the same weights, rows and noise, and must agree after UPDATES updates (exit code 1
if not). Then they are timed by turns, with noise of their own.

    python benchmarks/jax_update.py                     # the widths of preset cpu; the paper's inputs, support and form
    python benchmarks/jax_update.py --preset paper --updates 4 --repeats 3

Preset cpu differs from the paper's algorithm (input norm, support, Ioffe's form), so the table has its rate too. Letters as in algorithms/critic.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import pathlib
import statistics
import sys
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from algorithms import ALGORITHMS
from algorithms.actor_critic import UpdateNoise
from algorithms.config import GYM_SUPPORT
from algorithms.interface import AgentSpec
from algorithms.softgac.agent import SoftGAC
from algorithms.softgac.bridge import LAYER_NORM_EPS
from algorithms.softgac.config import EDGE, VARIANCE_FLOOR, SoftGACConfig
from algorithms.softgac.losses import energy_budget
from algorithms.softgac.weights import STEP_PARAMETERS
from benchmarks.markdown import table
from benchmarks.update import rate

UPDATES, WARMUP = (
    6,
    2,
)  # that both make with the same noise; and how many of them before renormalisation corrects its batches


class State(NamedTuple):
    """All that an update changes."""

    critic: dict[str, jax.Array]
    seen: dict[str, jax.Array]  # running statistics of the critics' renormalisation
    passes: jax.Array
    actor: dict[str, jax.Array]
    log_alpha: jax.Array
    adam: tuple[Any, Any, Any]  # of critics, actor and temperature


class Twin:
    """The update with preset paper's algorithm, at any sizes."""

    def __init__(self, config: SoftGACConfig, obs: int, action: int) -> None:
        self.config, self.obs, self.action = config, obs, action
        assert config.v_min is not None and config.v_max is not None  # fixed, as the paper has it
        self.ends = config.v_min, config.v_max
        self.layers, self.y_N = config.critic_layers + 1, jnp.linspace(*self.ends, config.atoms)
        self.budget = energy_budget(config.rho, config.bridge_steps, action)
        self.adams = (
            optax.adam(config.critic_lr, b1=config.critic_beta1), optax.adam(config.actor_lr), optax.adam(config.alpha_lr),
        )  # fmt: skip
        self.cycle = jax.jit(self._cycle)
        self.call = jax.jit(self._call)

    def begin(self, agent: SoftGAC) -> State:
        """The state with the weights of ``agent``."""
        critic = {name: jnp.array(t.detach().numpy()) for name, t in agent.critic.parameters.named.items()}
        seen = {name: jnp.array(t.numpy()) for name, t in agent.critic.statistics.items()}
        actor = {name: jnp.array(agent.policy.named[name].detach().numpy()) for name in STEP_PARAMETERS}
        log_alpha = jnp.array(agent.log_alpha.detach().numpy())
        adam = tuple(one.init(what) for one, what in zip(self.adams, (critic, actor, log_alpha), strict=True))
        return State(critic, seen, jnp.zeros(()), actor, log_alpha, adam)

    def path(self, actor: dict[str, jax.Array], obs_RO: jax.Array, noise_RKA: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Actions (R, A) and their control energy (R,)."""
        steps = self.config.bridge_steps
        h, z = 1.0 / steps, noise_RKA[:, 0]
        cost = jnp.full(len(z), -0.5 * steps * self.action)
        for k in range(steps):
            p = {name: tensor[k] for name, tensor in actor.items()}
            x = _layer_norm(jnp.concatenate([obs_RO, z], -1), p["norm_in.scale"], p["norm_in.bias"])
            e = jax.nn.elu(x @ p["hidden.weight"] + p["hidden.bias"])
            heads = _layer_norm(e, p["norm_out.scale"], p["norm_out.bias"]) @ p["heads.weight"] + p["heads.bias"]
            u, sigma = heads[:, : self.action], jax.nn.softplus(heads[:, self.action :])
            variance = sigma**2 + VARIANCE_FLOOR
            cost += 0.5 * (variance + 0.5 * h * (u + 2 * jnp.tanh(z)) ** 2 - jnp.log(variance)).sum(-1)
            z = z + h * u + math.sqrt(2 * h) * sigma * noise_RKA[:, k + 1]
        return jnp.tanh(z), cost

    def renorm(
        self, x_MI: jax.Array, gamma: jax.Array, beta: jax.Array, mean: jax.Array, var: jax.Array, warm: jax.Array
    ) -> Any:
        """Batch renormalisation as the authors have it, of one critic; and the batch's mean and variance."""
        config, still = self.config, jax.lax.stop_gradient
        mu, v = x_MI.mean(0), x_MI.var(0)
        std, running = jnp.sqrt(v + config.renorm_eps), jnp.sqrt(var + config.renorm_eps)
        r = still(jnp.where(warm, jnp.clip(std / running, 1 / config.renorm_r_max, config.renorm_r_max), 1.0))
        d = still(jnp.where(warm, jnp.clip((mu - mean) / running, -config.renorm_d_max, config.renorm_d_max), 0.0))
        bent = d * jnp.sqrt(jnp.maximum(v, 1e-30)) / r
        return gamma * (x_MI - mu + bent) * jax.lax.rsqrt(v / r**2 + config.renorm_eps) + beta, (still(mu), still(v))

    def joint(self, critic: Any, seen: Any, x_MI: jax.Array, warm: jax.Array) -> Any:
        """Train-mode logits (M, N) of one critic, and the batch's statistics by name."""
        batch, h = {}, x_MI
        for l in range(self.layers):
            scales = critic[f"norm{l}.scale"], critic[f"norm{l}.bias"]
            h = jax.nn.relu(h) if l else h
            h, (batch[f"norm{l}.mean"], batch[f"norm{l}.var"]) = self.renorm(
                h, *scales, seen[f"norm{l}.mean"], seen[f"norm{l}.var"], warm
            )
            h = h @ critic[f"linear{l}.weight"] + critic[f"linear{l}.bias"]
        return h, batch

    def frozen(self, critic: Any, seen: Any, x_BI: jax.Array) -> jax.Array:
        """E[Z] (B,) of one critic in eval mode."""
        h = x_BI
        for l in range(self.layers):
            scale = critic[f"norm{l}.scale"] * jax.lax.rsqrt(seen[f"norm{l}.var"] + self.config.renorm_eps)
            h = jax.nn.relu(h) if l else h
            h = (h - seen[f"norm{l}.mean"]) * scale + critic[f"norm{l}.bias"]
            h = h @ critic[f"linear{l}.weight"] + critic[f"linear{l}.bias"]
        return (jax.nn.softmax(h) * self.y_N).sum(-1)

    def project(self, p_BN: jax.Array, place_BN: jax.Array) -> jax.Array:
        """Mass p_BN at ``place_BN``, split between the two nearest atoms."""
        last, (low, high) = self.config.atoms - 1, self.ends
        place_BN = jnp.clip((place_BN - low) * (last / (high - low)), 0, last)
        low_BN = jnp.minimum(jnp.floor(place_BN), last - 1)
        upper_BN, index_BN = p_BN * (place_BN - low_BN), low_BN.astype(jnp.int32)
        row_B1 = jnp.arange(len(p_BN))[:, None]
        return jnp.zeros_like(p_BN).at[row_B1, index_BN].add(p_BN - upper_BN).at[row_B1, index_BN + 1].add(upper_BN)

    def critic_step(self, state: State, rows_BD: jax.Array, noise_BKA: jax.Array) -> tuple[State, jax.Array]:
        """One update of both critics, and its loss."""
        config, rows, inputs = self.config, len(rows_BD), self.obs + self.action
        reward_B, discount_B = rows_BD[:, inputs], config.gamma * rows_BD[:, inputs + 1]
        next_obs_BO = rows_BD[:, inputs + 2 :]
        action_BA, cost_B = self.path(state.actor, next_obs_BO, noise_BKA)
        x_MI = jnp.concatenate([rows_BD[:, :inputs], jnp.concatenate([next_obs_BO, action_BA], -1)])
        place_BN = reward_B[:, None] + discount_B[:, None] * (self.y_N - (jnp.exp(state.log_alpha) * cost_B)[:, None])

        def loss(critic: Any) -> Any:
            logits_TMN, batch = jax.vmap(self.joint, (0, 0, None, None))(
                critic, state.seen, x_MI, state.passes >= config.renorm_warmup
            )
            p_BN = jax.lax.stop_gradient(jax.nn.softmax(logits_TMN[:, rows:]).mean(0))
            log_p_TBN = jax.nn.log_softmax(logits_TMN[:, :rows])
            weight_TBN = config.critic_entropy * jnp.exp(log_p_TBN) - self.project(p_BN, place_BN)
            return (weight_TBN * log_p_TBN).sum() / rows, batch

        (value, batch), gradient = jax.value_and_grad(loss, has_aux=True)(state.critic)
        moves, adam = self.adams[0].update(gradient, state.adam[0])
        seen = {name: now + (1 - config.renorm_decay) * (batch[name] - now) for name, now in state.seen.items()}
        critic = optax.apply_updates(state.critic, moves)
        return state._replace(critic=critic, seen=seen, passes=state.passes + 1, adam=(adam, *state.adam[1:])), value

    def actor_step(self, state: State, rows_BD: jax.Array, noise_BKA: jax.Array) -> tuple[State, jax.Array]:
        """One update of actor and temperature, and the actor's loss."""
        alpha, obs_BO = jnp.exp(state.log_alpha), rows_BD[:, : self.obs]

        def loss(actor: Any) -> Any:
            action_BA, cost_B = self.path(actor, obs_BO, noise_BKA)
            x_BI = jnp.concatenate([obs_BO, action_BA], -1)
            q_TB = jax.vmap(self.frozen, (0, 0, None))(state.critic, state.seen, x_BI)
            return (alpha * cost_B - q_TB.min(0)).mean(), cost_B.mean()

        (value, cost), gradient = jax.value_and_grad(loss, has_aux=True)(state.actor)
        moves, adam = self.adams[1].update(gradient, state.adam[1])
        heat, heat_adam = self.adams[2].update(alpha * (self.budget - cost), state.adam[2])
        actor, log_alpha = optax.apply_updates(state.actor, moves), state.log_alpha + heat
        return state._replace(actor=actor, log_alpha=log_alpha, adam=(state.adam[0], adam, heat_adam)), value

    def _cycle(self, state: State, rows_CBD: jax.Array, noise_CBKA: jax.Array, loss_noise_BKA: jax.Array) -> Any:
        losses = []
        for rows_BD, noise_BKA in zip(rows_CBD, noise_CBKA, strict=True):
            state, value = self.critic_step(state, rows_BD, noise_BKA)
            losses.append(value)
        state, value = self.actor_step(state, rows_CBD[-1], loss_noise_BKA)
        return state, jnp.stack([*losses, value])

    def _call(self, state: State, rows_UBD: jax.Array, key: jax.Array) -> Any:
        """All updates of a call in one program."""
        cycles = rows_UBD.reshape(-1, self.config.actor_every, *rows_UBD.shape[1:])

        def step(carried: Any, rows_CBD: jax.Array) -> Any:
            state, key = carried
            key, first, second = jax.random.split(key, 3)
            shape = (self.config.actor_every + 1, rows_CBD.shape[1], self.config.bridge_steps + 1, self.action)
            noise = jax.random.normal(first, shape)
            base = jnp.arctanh(jax.random.uniform(second, shape[:2] + shape[3:], minval=-EDGE, maxval=EDGE))
            noise = noise.at[:, :, 0].set(base)
            state, losses = self._cycle(state, rows_CBD, noise[:-1], noise[-1])
            return (state, key), losses

        (state, _), losses = jax.lax.scan(step, (state, key), cycles)
        return state, losses.mean(0)


class TimedTwin:
    """``Twin`` as what ``benchmarks.update.rate`` calls."""

    def __init__(self, twin: Twin, state: State) -> None:
        self.twin, self.state, self.key = twin, state, jax.random.key(0)

    def update(self, rows_UBD: torch.Tensor) -> None:
        self.key, key = jax.random.split(self.key)
        self.state, losses = self.twin.call(self.state, rows_UBD.numpy(), key)
        losses.block_until_ready()


def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + LAYER_NORM_EPS) * scale + bias


def differences(agent: SoftGAC, twin: Twin, rows_UBD: torch.Tensor) -> dict[str, float]:
    """What both differ by after some updates from one start: root mean square, relative to that of what the updates changed.

    Not the greatest: a gradient that is 0 but for rounding moves a weight by a whole step of Adam, one way or the other.
    """
    before = _parts(agent)
    state, cycle = twin.begin(agent), twin.config.actor_every
    for first in range(0, len(rows_UBD), cycle):
        mine = rows_UBD[first : first + cycle]
        noise = torch.stack([agent.draw_noise(mine.shape[1]) for _ in range(cycle + 1)])
        for at, rows_BD in enumerate(mine):
            agent.update_with(rows_BD, UpdateNoise(noise[at], noise[-1]), with_actor=at == cycle - 1)
        state, _ = twin.cycle(state, mine.numpy(), noise[:-1].numpy(), noise[-1].numpy())
    theirs = (state.critic, state.seen, state.actor, {"": state.log_alpha})
    order = (agent.critic.parameters.named, agent.critic.statistics, STEP_PARAMETERS, ("",))
    found = {}
    for (name, own), tree, names in zip(_parts(agent).items(), theirs, order, strict=True):
        other = np.concatenate([np.asarray(tree[one]).ravel() for one in names])
        found[name] = float(np.linalg.norm(own - other) / np.linalg.norm(own - before[name]))
    return found


def _parts(agent: SoftGAC) -> dict[str, np.ndarray]:
    """All that an update changes, as copies, each flattened in the order of its names."""
    parts = {
        "critics": list(agent.critic.parameters.named.values()),
        "statistics": list(agent.critic.statistics.values()),
        "actor": [agent.policy.named[name] for name in STEP_PARAMETERS],
        "log alpha": [agent.log_alpha],
    }
    return {name: torch.cat([t.detach().flatten() for t in tensors]).numpy().copy() for name, tensors in parts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("cpu", "paper"), default="cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--obs", type=int, default=17, help="(HalfCheetah: 17)")
    parser.add_argument("--action", type=int, default=6, help="(HalfCheetah: 6)")
    parser.add_argument("--updates", type=int, default=64, help="a call")
    parser.add_argument("--repeats", type=int, default=9, help="calls of each; medians are printed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    preset = ALGORITHMS["softgac"].presets[args.preset]()
    same = dataclasses.replace(
        preset, input_norm="layer_norm", renorm_form="crossq", v_min=-GYM_SUPPORT, v_max=GYM_SUPPORT
    )
    spec = AgentSpec(obs_dim=args.obs, action_dim=args.action)
    checked = dataclasses.replace(same, renorm_warmup=WARMUP)
    twin, agent = Twin(same, args.obs, args.action), SoftGAC(same, spec)
    width = 2 * args.obs + args.action + 2
    rows = torch.randn(args.updates, args.batch, width, generator=torch.Generator().manual_seed(0))
    rows[..., args.obs + args.action + 1] = 1.0
    found = differences(SoftGAC(checked, spec), Twin(checked, args.obs, args.action), rows[: min(UPDATES, len(rows))])
    print("differences after the same updates: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()))
    if max(found.values()) > 0.05:
        return 1
    agents: dict[str, Any] = {"JAX": TimedTwin(twin, twin.begin(agent)), "this project, the same update": agent}
    if preset != same:
        agents[f"this project, preset {args.preset}"] = SoftGAC(preset, spec)
    rates = [statistics.median(one) for one in rate(list(agents.values()), rows, args.repeats)]
    cells = [[name, f"{one:.3g}", f"{one / rates[0]:.2f}"] for name, one in zip(agents, rates, strict=True)]
    print(table(["", "updates a CPU second", "to JAX"], cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
