"""What training lowers: eqs. (4) to (8) as sums of named terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import InputError
from semcast.metrics.perceptual import lpips_loss

BETA = 0.25
TASK_TERMS = ("jsd", "kld", "ce")
CODEBOOK_TERM = "quantisation"
TERMS = ("mse", "lpips", *TASK_TERMS, "gan", CODEBOOK_TERM)
"""Terms by name, and the losses of the paper: ``{mse: 1}`` is eq. (4), ``{lpips: 1, jsd: 1}`` eq. (5), ``{ce: 1}`` eq. (6),
``{mse: 1, kld: 1}`` eq. (7), ``{lpips: 1}`` eq. (8); ``{kld: 1}`` and ``{kld: 1, lpips: 1}`` are the others of Table IV.
``quantisation`` stands beside them all, with weight 1 where none is named: a mean over entries, D times less than a norm."""

Logits = Callable[[Tensor], Tensor]


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """D_KL(p || q) in nats of (B, m, H, W) log-probabilities, mean over pixels."""
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def js_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """D_JS(p || q) in nats, at most log 2, of (B, m, H, W) log-probabilities, mean over pixels. Below eq. (5)."""
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return (kl_divergence(log_p, log_m) + kl_divergence(log_q, log_m)) / 2


def quantisation_loss(z_e: Tensor, e: Tensor, beta: float = BETA) -> Tensor:
    """||sg[z_e] - e||^2 + beta ||z_e - sg[e]||^2, mean over entries: the last two terms of eq. (4)."""
    return F.mse_loss(e, z_e.detach()) + beta * F.mse_loss(z_e, e.detach())


def check_terms(terms: Mapping[str, float], target: Logits | None) -> None:
    """Raises InputError where a term is unknown, or imitates nothing."""
    unknown = [name for name in terms if name not in TERMS]
    if unknown:
        raise InputError(f"there is no loss term {unknown[0]!r}; known are {', '.join(TERMS)}")
    task = [name for name in terms if name in TASK_TERMS]
    if task and target is None:
        raise InputError(f"the loss term {task[0]!r} imitates a task model: name one in the stage's options, target: segmenter")


def distortion(
    terms: Mapping[str, float], x: Tensor, made: Tensor, target: Logits | None, discriminator: nn.Module | None
) -> dict[str, Tensor]:
    """Every term between pictures ``x`` and ``made`` (B, 3, H, W), unweighted.

    Raises:
        InputError: as of :func:`check_terms`. WeightsError: LPIPS is asked for and SqueezeNet is not to be found.
    """
    check_terms(terms, target)
    x, made = (frames.contiguous(memory_format=torch.channels_last) for frames in (x, made))  # a third faster on processors
    found: dict[str, Tensor] = {}
    if "mse" in terms:
        found["mse"] = F.mse_loss(made, x)
    if "lpips" in terms:
        found["lpips"] = lpips_loss(x, made)
    if target is not None and (task := [name for name in TASK_TERMS if name in terms]):
        with torch.no_grad():
            log_s = F.log_softmax(target(x).float(), 1)  # eq. (3)
        logits = target(made).float()
        log_s_hat = F.log_softmax(logits, 1)
        for name in task:
            if name == "jsd":
                found[name] = js_divergence(log_s, log_s_hat)
            elif name == "kld":
                found[name] = kl_divergence(log_s, log_s_hat)
            else:
                found[name] = F.cross_entropy(logits, log_s.argmax(1))
    if "gan" in terms:
        if discriminator is None:
            raise InputError("the loss term 'gan' needs a system with a discriminator: vq-gan")
        found |= adversarial(x, made, discriminator)
    return found


def adversarial(x: Tensor, made: Tensor, discriminator: nn.Module) -> dict[str, Tensor]:
    """Hinge losses: ``gan`` moves the generator alone, ``discriminator`` the discriminator alone, in one backward pass."""
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    fooled = torch.func.functional_call(discriminator, frozen, (made,))
    real, fake = discriminator(x), discriminator(made.detach())
    return {"gan": -fooled.mean(), "discriminator": F.relu(1 - real).mean() + F.relu(1 + fake).mean()}
