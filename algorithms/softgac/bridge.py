"""The soft bridge: K small networks that carry base noise to an action.

Letters: R rows, O observation dim, A action dim, I = O + A, H width, K steps. Source: arXiv 2605.08733.

    z_0 ~ base law,  z_{k+1} = z_k + h u_k + sqrt(2h) sigma_k eps_k,  a = tanh(z_K),  h = 1/K
    (u_k, sigma_k) = f_k(s, z_k):  concat -> norm -> Linear -> ELU -> LayerNorm -> heads u, softplus(raw sigma)

The norm is the paper's LayerNorm, which erases the mean and the scale of (s, z); or s is standardised before the first
step (``standardised``) and the norm is a scale and a bias for each input.

``bridge_model`` is the same network as an ONNX graph, about 3 times faster than torch for the small batches of a worker.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from algorithms.onnx_graph import Graph
from algorithms.softgac.compiled_bridge import CompiledBridge
from algorithms.softgac.config import BASE_STD, EDGE, SoftGACConfig
from algorithms.softgac.weights import OBS_STATISTICS, STEP_PARAMETERS, step_shapes
from algorithms.trainer import xavier_uniform

LAYER_NORM_EPS = 1e-6


class Path(NamedTuple):
    """A bridge's path: ``z_KRA`` (K+1, R, A), drifts ``u_KRA`` and scales ``sigma_KRA`` (K, R, A)."""

    z_KRA: torch.Tensor
    u_KRA: torch.Tensor
    sigma_KRA: torch.Tensor


def initial_parameters(
    obs_dim: int, action_dim: int, *, steps: int, width: int, draw: torch.Generator
) -> dict[str, torch.Tensor]:
    """Parameters of all K step networks, stacked: names of STEP_PARAMETERS, shapes (K, ...), float32.

    Hidden and drift layers Xavier-uniform with zero bias; the sigma head has zero weights and bias log(e - 1), so that
    sigma is 1 at the start.
    """
    inputs = obs_dim + action_dim
    drift = xavier_uniform((steps, width, action_dim), draw)
    raw = torch.full((steps, action_dim), math.log(math.e - 1.0))
    return {
        "norm_in.scale": torch.ones(steps, inputs),
        "norm_in.bias": torch.zeros(steps, inputs),
        "hidden.weight": xavier_uniform((steps, inputs, width), draw),
        "hidden.bias": torch.zeros(steps, width),
        "norm_out.scale": torch.ones(steps, width),
        "norm_out.bias": torch.zeros(steps, width),
        "heads.weight": torch.cat([drift, torch.zeros_like(drift)], -1),
        "heads.bias": torch.cat([torch.zeros_like(raw), raw], -1),
    }


def bridge_path(
    obs_RO: torch.Tensor, noise_RKA: torch.Tensor, parameters: dict[str, torch.Tensor], layer_norm: bool = True
) -> Path:
    """The path of each row, from noise (R, K+1, A) whose slice 0 is z_0; gradients reach the parameters alone.

    Args:
        parameters: stacked as in ``initial_parameters``.
        layer_norm: whether each step normalises its input (the paper); otherwise ``obs_RO`` is standardised already.
    """
    return Path(*_BridgePath.apply(layer_norm, obs_RO, noise_RKA, *(parameters[name] for name in STEP_PARAMETERS)))


def bridge_action(
    obs_RO: torch.Tensor, noise_RKA: torch.Tensor, steps: list[list[torch.Tensor]], layer_norm: bool = True
) -> torch.Tensor:
    """Actions (R, A) of the same bridge, for acting: ``steps[k]`` holds step k's tensors in STEP_PARAMETERS' order."""
    h = 1.0 / len(steps)
    z, eps_RKA = noise_RKA[:, 0], noise_RKA[:, 1:] * math.sqrt(2 * h)
    for k, (scale_in, bias_in, weight, bias, scale_out, bias_out, heads, heads_bias) in enumerate(steps):
        x = torch.cat([obs_RO, z], -1)
        x = (
            F.layer_norm(x, scale_in.shape, scale_in, bias_in, LAYER_NORM_EPS)
            if layer_norm
            else torch.addcmul(bias_in, x, scale_in)
        )
        e = F.layer_norm(F.elu(torch.addmm(bias, x, weight)), scale_out.shape, scale_out, bias_out, LAYER_NORM_EPS)
        u, raw = torch.addmm(heads_bias, e, heads).chunk(2, -1)
        z = z + h * u + F.softplus(raw) * eps_RKA[:, k]
    return torch.tanh(z)


def standardised(obs_RO: torch.Tensor, mean_O: torch.Tensor, var_O: torch.Tensor, eps: float) -> torch.Tensor:
    """Observations with mean 0 and variance 1 in each entry, by running statistics."""
    return (obs_RO - mean_O) * torch.rsqrt(var_O + eps)


def draw_noise(rows: int, steps: int, action_dim: int, law: str, generator: torch.Generator) -> torch.Tensor:
    """Noise (rows, K+1, A) float32 on the generator's device: slice 0 is z_0, the rest standard normal.

    logistic: z_0 = atanh(U), U uniform on (-1, 1), variance pi^2/12; gaussian (ours): the same variance.
    """
    noise = torch.randn(rows, steps + 1, action_dim, generator=generator, device=generator.device)
    if law == "gaussian":
        noise[:, 0].mul_(BASE_STD)
    else:
        uniform = torch.rand(rows, action_dim, generator=generator, device=generator.device)
        noise[:, 0] = uniform.mul_(2 * EDGE).sub_(EDGE).atanh_()
    return noise


class CompiledRollout(torch.autograd.Function):
    """Action (R, A), control energy (R,) and mean sigma (0-d): ``apply(bridge, obs_RO, noise_RKA, *parameters)``."""

    @staticmethod
    def forward(
        ctx: Any, bridge: CompiledBridge, obs_RO: torch.Tensor, noise_RKA: torch.Tensor, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        obs_RO, noise_RKA = obs_RO.contiguous(), noise_RKA.contiguous()
        action_RA, cost_R, sigma, z_KRA = bridge.forward(obs_RO, noise_RKA, parameters)
        ctx.bridge, ctx.parameters, ctx.seen = bridge, parameters, (obs_RO, noise_RKA, z_KRA, action_RA)
        ctx.mark_non_differentiable(sigma)
        return action_RA, cost_R, sigma

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> Any:
        action_grad, cost_grad, _ = (grad.contiguous() for grad in output_grads)
        return None, None, None, *ctx.bridge.backward(ctx.seen, ctx.parameters, action_grad, cost_grad)


class _BridgePath(torch.autograd.Function):
    """All K steps and their backward through time, written out: about a third of the calls that autograd makes."""

    @staticmethod
    def forward(
        ctx: Any, layer_norm: bool, obs_RO: torch.Tensor, noise_RKA: torch.Tensor, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale_in, bias_in, weight, bias, scale_out, bias_out, heads, heads_bias = parameters
        steps, (rows, obs_dim), action_dim = heads.shape[0], obs_RO.shape, heads.shape[2] // 2
        h = 1.0 / steps
        eps_KRA = noise_RKA[:, 1:].transpose(0, 1) * math.sqrt(2 * h)
        x_KRI = obs_RO.new_empty(steps + 1, rows, obs_dim + action_dim)  # every step's input (s, z), and z_K
        x_KRI[:steps, :, :obs_dim] = obs_RO
        z_KRA = x_KRI[:, :, obs_dim:]
        z_KRA[0] = noise_RKA[:, 0]
        heads_KRA = obs_RO.new_empty(steps, rows, 2 * action_dim)
        softplus_KRA = torch.empty_like(heads_KRA)  # of all entries: vectorised
        u_KRA, sigma_KRA = heads_KRA[:, :, :action_dim], softplus_KRA[:, :, action_dim:]
        if not layer_norm:  # the norm, a scale and a bias, is part of the first layer
            bias = torch.baddbmm(bias.unsqueeze(1), bias_in.unsqueeze(1), weight).squeeze(1)
            weight = weight * scale_in.unsqueeze(2)
        saved = []
        for k in range(steps):
            n_in: tuple[torch.Tensor, ...] = (x_KRI[k],)  # and, of a LayerNorm, its moments
            if layer_norm:
                inputs = [obs_dim + action_dim]
                n_in = torch.native_layer_norm(x_KRI[k], inputs, scale_in[k], bias_in[k], LAYER_NORM_EPS)
            e = F.elu_(torch.addmm(bias[k], n_in[0], weight[k]))
            n_out, *moments_out = torch.native_layer_norm(e, [e.shape[1]], scale_out[k], bias_out[k], LAYER_NORM_EPS)
            torch.addmm(heads_bias[k], n_out, heads[k], out=heads_KRA[k])
            torch.ops.aten.softplus.out(heads_KRA[k], out=softplus_KRA[k])
            torch.addcmul(z_KRA[k], sigma_KRA[k], eps_KRA[k], out=z_KRA[k + 1]).add_(u_KRA[k], alpha=h)
            saved.append((n_in, e, n_out, moments_out))
        if any(ctx.needs_input_grad):
            ctx.layer_norm, ctx.saved, ctx.parameters = layer_norm, saved, parameters
            ctx.eps_KRA, ctx.x_KRI, ctx.raw_KRA = eps_KRA, x_KRI[:steps], heads_KRA[:, :, action_dim:]
            ctx.first = weight
        return z_KRA, u_KRA, sigma_KRA

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> Any:
        gz_KRA, gu_KRA, gsigma_KRA = output_grads
        scale_in, bias_in, weight, _, scale_out, bias_out, heads, _ = ctx.parameters
        steps, rows, action_dim = ctx.eps_KRA.shape
        slope_KRA = torch.sigmoid(ctx.raw_KRA)  # softplus'
        gheads_KR2A = torch.stack([gu_KRA, gsigma_KRA * slope_KRA], 2)
        gheads_KRA = gheads_KR2A.flatten(2)
        # d z_{k+1} / d (u_k, raw sigma_k)
        reach_KR2A = torch.stack([torch.full_like(slope_KRA, 1.0 / steps), ctx.eps_KRA * slope_KRA], 2)
        ghidden_KRH = gz_KRA.new_empty(steps, rows, weight.shape[2])
        affine: list[tuple[torch.Tensor, ...]] = []
        gz = gz_KRA[steps]
        for k in reversed(range(steps)):
            (_, *moments_in), e, _, moments_out = ctx.saved[k]
            gheads_KR2A[k].addcmul_(gz.unsqueeze(1), reach_KR2A[k])
            ge, gscale_out, gbias_out = torch.ops.aten.native_layer_norm_backward(
                torch.mm(gheads_KRA[k], heads[k].T),
                e,
                [e.shape[1]],
                *moments_out,
                scale_out[k],
                bias_out[k],
                [True] * 3,
            )
            torch.ops.aten.elu_backward.grad_input(ge, 1.0, 1.0, 1.0, True, e, grad_input=ghidden_KRH[k])
            gz, grads_in = gz + gz_KRA[k], []
            if ctx.layer_norm:
                gn = torch.mm(ghidden_KRH[k], weight[k].T)
                gx, *grads_in = torch.ops.aten.native_layer_norm_backward(
                    gn, ctx.x_KRI[k], [gn.shape[1]], *moments_in, scale_in[k], bias_in[k], [True] * 3
                )
                gz.add_(gx[:, -action_dim:])
            else:
                gz.addmm_(ghidden_KRH[k], ctx.first[k, -action_dim:].T)
            affine.append((gscale_out, gbias_out, *grads_in))
        gscale_out, gbias_out, *grads_in = (torch.stack(list(t)) for t in zip(*reversed(affine)))
        n_in_KRI = torch.stack([n_in[0] for n_in, *_ in ctx.saved]) if ctx.layer_norm else ctx.x_KRI
        n_out_KRH = torch.stack([n_out for *_, n_out, _ in ctx.saved])
        gweight, gheads = torch.bmm(n_in_KRI.mT, ghidden_KRH), torch.bmm(n_out_KRH.mT, gheads_KRA)
        gbias, gheads_bias = ghidden_KRH.sum(1), gheads_KRA.sum(1)
        if ctx.layer_norm:
            gscale_in, gbias_in = grads_in
        else:  # the gradients so far are those of first = weight scale_in and of bias + bias_in weight
            gscale_in, gbias_in = (gweight * weight).sum(2), torch.bmm(weight, gbias.unsqueeze(2)).squeeze(2)
            gweight = (gweight * scale_in.unsqueeze(2)).addcmul_(bias_in.unsqueeze(2), gbias.unsqueeze(1))
        return None, None, None, gscale_in, gbias_in, gweight, gbias, gscale_out, gbias_out, gheads, gheads_bias


def bridge_model(config: SoftGACConfig, obs_dim: int, action_dim: int) -> bytes:
    """Inputs ``obs`` (B, O), ``noise`` (B, K+1, A), ``bridge.{k}.{name}`` for every k; output ``action`` (B, A).

    With input_norm=running also ``obs.mean`` and ``obs.var`` (O,).
    """
    graph, steps, h = Graph(), config.bridge_steps, 1.0 / config.bridge_steps
    shapes = step_shapes(obs_dim, action_dim, config.bridge_width)
    obs = graph.input("obs", ("B", obs_dim))
    noise = graph.input("noise", ("B", steps + 1, action_dim))
    if config.input_norm == "running":
        mean, var = (graph.input(name, (obs_dim,)) for name in OBS_STATISTICS)
        std = graph.node("Sqrt", graph.node("Add", var, graph.scalar(config.renorm_eps)))
        obs = graph.node("Div", graph.node("Sub", obs, mean), std)
    flat = graph.node("Reshape", noise, graph.constant(np.array([-1, (steps + 1) * action_dim])))
    factor = np.full((steps + 1, action_dim), math.sqrt(2 * h), np.float32)
    factor[0] = 1.0  # slice 0 is z_0 itself
    scaled = graph.node("Mul", flat, graph.constant(factor.reshape(1, -1)))
    parts = graph.constant(np.full(steps + 1, action_dim))
    z, *eps = graph.nodes("Split", scaled, parts, outputs=steps + 1, axis=1)
    halves, length = graph.constant(np.array([action_dim, action_dim])), graph.scalar(h)
    for k in range(steps):
        p = {name: graph.input(f"bridge.{k}.{name}", shapes[name]) for name in STEP_PARAMETERS}
        x = graph.node("Concat", obs, z, axis=1)
        if config.input_norm == "layer_norm":
            x = graph.node("LayerNormalization", x, p["norm_in.scale"], p["norm_in.bias"], epsilon=LAYER_NORM_EPS)
        else:
            x = graph.node("Add", graph.node("Mul", x, p["norm_in.scale"]), p["norm_in.bias"])
        e = graph.node("Elu", graph.node("Gemm", x, p["hidden.weight"], p["hidden.bias"]))
        e = graph.node("LayerNormalization", e, p["norm_out.scale"], p["norm_out.bias"], epsilon=LAYER_NORM_EPS)
        u, raw = graph.nodes(
            "Split", graph.node("Gemm", e, p["heads.weight"], p["heads.bias"]), halves, outputs=2, axis=1
        )
        kick = graph.node("Mul", graph.node("Softplus", raw), eps[k])
        z = graph.node("Add", graph.node("Add", z, graph.node("Mul", u, length)), kick)
    return graph.model(graph.node("Tanh", z), ("B", action_dim))
