"""Settings that both actor-critics share: the critic recipe, the temperature and the schedule."""

from __future__ import annotations

import dataclasses
import math

from replay.option import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """Twin C51 critics with batch renormalisation and no target network, a temperature, and who updates when.

    Defaults are those of "Generative Actor-Critic with Soft Bridge Policies", arXiv 2605.08733, for Gym MuJoCo.
    """

    critic_width: int = option(2048, "units", "hidden units of each critic layer (paper: 2,048)")
    critic_layers: int = option(2, "layers", "hidden layers of each critic (paper: 2)")
    atoms: int = option(101, "atoms", "atoms of the return distribution (paper: 101)")
    v_min: float = option(-1600.0, "return", "lowest atom (paper: -1600 on Gym MuJoCo, -200 elsewhere)")
    v_max: float = option(1600.0, "return", "highest atom (paper: 1600 on Gym MuJoCo, 200 elsewhere)")
    gamma: float = option(0.99, "1", "discount of one step (paper: .99)")
    critic_lr: float = option(3e-4, "1", "Adam step size of the critics (paper: 3e-4)")
    actor_lr: float = option(3e-4, "1", "Adam step size of the actor (paper: 3e-4)")
    alpha_lr: float = option(1e-3, "1", "Adam step size of log alpha (paper: 1e-3)")
    critic_beta1: float = option(
        0.5, "1", "Adam's first decay for the critics (paper: .5; the actor and alpha keep .9)"
    )
    alpha_mode: str = option("auto", "name", "auto: alpha follows its budget; constant: stays", ("auto", "constant"))
    alpha_init: float = option(0.1, "1", "temperature at the start (paper: .1); 0 is allowed when it is constant")
    critic_entropy: float = option(0.005, "1", "weight of sum p log p in the critics' loss (paper: .005)")
    actor_every: int = option(2, "updates", "critic updates to one update of actor and temperature (paper: 2)")
    renorm_decay: float = option(0.99, "1", "decay of the running statistics of batch renormalisation (paper: .99)")
    renorm_eps: float = option(1e-3, "1", "added to a variance before its root (paper: 1e-3)")
    renorm_r_max: float = option(3.0, "1", "the scale correction r stays in [1/r_max, r_max] (paper: 3)")
    renorm_d_max: float = option(5.0, "1", "the shift correction d stays in [-d_max, d_max] (paper: 5)")
    renorm_warmup: int = option(100_000, "updates", "updates of plain batch normalisation first (paper: 100,000)")
    matmul: str = option("auto", "name", "CPU matrix products: mkl, onednn, or the faster", ("auto", "mkl", "onednn"))

    def problems(self) -> list[str]:
        """Every value that cannot work, each with the consequence and a fix; empty when all is well."""
        found = [
            f"{name} is {getattr(self, name)}, expected at least {least}: {why}; set {name}={least} or more"
            for name, least, why in (
                ("critic_width", 1, "a layer without units computes nothing"),
                ("critic_layers", 1, "batch renormalisation needs a hidden layer to act on"),
                ("atoms", 2, "a distribution on one atom has no mean to learn"),
                ("actor_every", 1, "the actor would never learn"),
                ("renorm_warmup", 0, "a count of updates cannot be negative"),
            )
            if getattr(self, name) < least
        ]
        found += [
            f"{name} is {getattr(self, name)}, expected a finite number above 0: {why}; the default is {default}"
            for name, why, default in (
                ("critic_lr", "the critics would not learn", 3e-4),
                ("actor_lr", "the actor would not learn", 3e-4),
                ("alpha_lr", "the temperature would not follow its budget", 1e-3),
                ("renorm_eps", "a constant input would divide by zero", 1e-3),
            )
            if not 0 < getattr(self, name) < math.inf
        ]
        found += [
            f"{name} is {getattr(self, name)}, expected a number in [0, 1): {why}"
            for name, why in (
                ("gamma", "returns of endless episodes would not be finite; the default is 0.99"),
                ("critic_beta1", "Adam's average would never move; the default is 0.5"),
                ("renorm_decay", "running statistics would never move; the default is 0.99"),
            )
            if not 0 <= getattr(self, name) < 1
        ]
        found += [
            f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}"
            for name, allowed in (("alpha_mode", ("auto", "constant")), ("matmul", ("auto", "mkl", "onednn")))
            if getattr(self, name) not in allowed
        ]
        if not -math.inf < self.v_min < self.v_max < math.inf:
            found.append(
                f"v_min is {self.v_min} and v_max is {self.v_max}, expected finite numbers with v_min < v_max: the "
                "critics' atoms would have no spacing; take bounds that hold every discounted return of the task"
            )
        silent = self.alpha_init == 0 and self.alpha_mode == "constant"
        if not silent and not 0 < self.alpha_init < math.inf:
            found.append(
                f"alpha_init is {self.alpha_init} with alpha_mode {self.alpha_mode}, expected a finite number above 0 "
                "(or exactly 0 when constant): its logarithm is what is learned; the default is 0.1"
            )
        if not 0 <= self.critic_entropy < math.inf:
            found.append(
                f"critic_entropy is {self.critic_entropy}, expected a finite number of 0 or more; the default is 0.005"
            )
        if not 1 <= self.renorm_r_max < math.inf:
            found.append(
                f"renorm_r_max is {self.renorm_r_max}, expected 1 or more: [1/r_max, r_max] would be empty; take 3"
            )
        if not 0 <= self.renorm_d_max < math.inf:
            found.append(
                f"renorm_d_max is {self.renorm_d_max}, expected 0 or more: [-d_max, d_max] would be empty; take 5"
            )
        return found

    def check(self) -> None:
        """Raises ValueError with every problem at once; nothing is built from settings that cannot work."""
        if found := self.problems():
            raise ValueError("these settings cannot work:\n" + "\n".join(f"- {problem}" for problem in found))
