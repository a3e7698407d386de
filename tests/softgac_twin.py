"""Slow, plain forms of what algorithms/ computes fast: written like the equations, differentiated by autograd."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from algorithms.batch_renorm import Renorm

RENORM = Renorm(decay=0.99, eps=1e-3, r_max=3.0, d_max=5.0, warmup=0)


def project_loop(p: np.ndarray, target: np.ndarray, v_min: float, v_max: float) -> np.ndarray:
    """C51's projection, one atom at a time (Bellemare et al. 2017, algorithm 1), float64."""
    rows, atoms = p.shape
    mass, gap = np.zeros((rows, atoms)), (v_max - v_min) / (atoms - 1)
    for b in range(rows):
        for j in range(atoms):
            place = (min(max(target[b, j], v_min), v_max) - v_min) / gap
            low = min(math.floor(place), atoms - 2)
            mass[b, low] += p[b, j] * (low + 1 - place)
            mass[b, low + 1] += p[b, j] * (place - low)
    return mass


def renorm_loop(x, gamma, beta, running_mean, running_var, warm, c=RENORM):  # type: ignore[no-untyped-def]
    """Batch renormalisation of (M, I) in float64 numpy, one feature at a time; also the batch statistics."""
    y, means, variances = np.zeros_like(x), [], []
    for i in range(x.shape[1]):
        mean, var = x[:, i].mean(), x[:, i].var()
        s, s_run = math.sqrt(var + c.eps), math.sqrt(running_var[i] + c.eps)
        r = min(max(s / s_run, 1 / c.r_max), c.r_max) if warm else 1.0
        d = min(max((mean - running_mean[i]) / s_run, -c.d_max), c.d_max) if warm else 0.0
        normal = (x[:, i] - mean) / s * r + d
        if c.form == "crossq":
            normal = (x[:, i] - mean + d * math.sqrt(var) / r) / math.sqrt(var / r**2 + c.eps)
        y[:, i] = gamma[i] * normal + beta[i]
        means.append(mean)
        variances.append(var)
    return y, np.array(means), np.array(variances)


def renorm_autograd(x_MI, gamma_I, beta_I, running_mean_I, running_var_I, warm, c):  # type: ignore[no-untyped-def]
    """The same with torch, for autograd."""
    mean = x_MI.mean(0)
    var = (x_MI * x_MI).mean(0) - mean**2
    s, s_run = torch.sqrt(var + c.eps), torch.sqrt(running_var_I + c.eps)
    r = (s / s_run).clamp(1 / c.r_max, c.r_max).detach() if warm else 1.0
    d = ((mean - running_mean_I) / s_run).clamp(-c.d_max, c.d_max).detach() if warm else 0.0
    if c.form == "crossq":
        return gamma_I * (x_MI - mean + d * torch.sqrt(var) / r) / torch.sqrt(var / r**2 + c.eps) + beta_I
    return gamma_I * ((x_MI - mean) / s * r + d) + beta_I


def joint_autograd(x_MI, parameters, statistics, passes, layers, c):  # type: ignore[no-untyped-def]
    """Logits of each critic on [(s, a); (s', a')], one critic and one layer at a time: (T, B, N) and, stopped, (T, B, N)."""
    logits = []
    for t in range(2):
        h = x_MI
        for l in range(layers):
            h = renorm_autograd(
                torch.relu(h) if l else h,
                parameters[f"norm{l}.scale"][t],
                parameters[f"norm{l}.bias"][t],
                statistics[f"norm{l}.mean"][t],
                statistics[f"norm{l}.var"][t],
                passes >= c.warmup,
                c,
            )
            h = h @ parameters[f"linear{l}.weight"][t] + parameters[f"linear{l}.bias"][t]
        logits.append(h)
    now, following = torch.stack(logits).chunk(2, 1)
    return now, following.detach()


def evaluate_autograd(x_BI, parameters, statistics, layers, eps):  # type: ignore[no-untyped-def]
    """Eval-mode logits (T, B, N), renormalisation not folded."""
    logits = []
    for t in range(2):
        h = x_BI
        for l in range(layers):
            h = torch.relu(h) if l else h
            h = (h - statistics[f"norm{l}.mean"][t]) / torch.sqrt(statistics[f"norm{l}.var"][t] + eps)
            h = h * parameters[f"norm{l}.scale"][t] + parameters[f"norm{l}.bias"][t]
            h = h @ parameters[f"linear{l}.weight"][t] + parameters[f"linear{l}.bias"][t]
        logits.append(h)
    return torch.stack(logits)


def bridge_autograd(obs, noise, parameters, layer_norm=True):  # type: ignore[no-untyped-def]
    """The bridge and its control energy, step by step: actions (R, A) and C (R,); ``obs`` as the steps see them."""
    steps = parameters["heads.weight"].shape[0]
    h, z, energy = 1 / steps, noise[:, 0], 0.0
    for k in range(steps):
        p = {name: tensor[k] for name, tensor in parameters.items()}
        x = torch.cat([obs, z], -1)
        if layer_norm:
            x = F.layer_norm(x, x.shape[1:], eps=1e-6)
        x = x * p["norm_in.scale"] + p["norm_in.bias"]
        x = F.elu(x @ p["hidden.weight"] + p["hidden.bias"])
        x = F.layer_norm(x, p["norm_out.scale"].shape, p["norm_out.scale"], p["norm_out.bias"], 1e-6)
        u, raw = (x @ p["heads.weight"] + p["heads.bias"]).chunk(2, -1)
        sigma = F.softplus(raw)
        s2 = sigma**2 + 1e-6
        energy = energy + 0.5 * (s2 + h / 2 * (u + 2 * torch.tanh(z)) ** 2 - 1 - torch.log(s2)).sum(-1)
        z = z + h * u + math.sqrt(2 * h) * sigma * noise[:, k + 1]
    return torch.tanh(z), energy
