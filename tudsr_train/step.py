"""The step from z_L to z_H: paper Eq. (2), second line, for every kind of prediction.

    z_H = a z_L + b B(z_L, t, c)

    B predicts         a               b                        level of noise at t
    epsilon            1 / sqrt(A)     -sqrt(1 - A) / sqrt(A)   A = alphas_cumprod[t]
    v_prediction       sqrt(A)         -sqrt(1 - A)             A
    flow_prediction    1               -sigma                   sigma = t / 1000
    sample (x0)        0               1                        either
    residual           1               -1                       either

The names are those of diffusers' schedulers; v: Salimans and Ho 2022, appendix D; flow: v = eps - z_H and
z_t = (1 - sigma) z_H + sigma eps (Lipman et al. 2023; Esser et al. 2024); residual: PiSA-SR (Sun et al.
2025).
"""

from __future__ import annotations

from torch import Tensor

EPSILON, V_PREDICTION, SAMPLE, FLOW_PREDICTION = "epsilon", "v_prediction", "sample", "flow_prediction"
RESIDUAL = "residual"
PREDICTION_TYPES = (EPSILON, V_PREDICTION, SAMPLE, FLOW_PREDICTION)
"""What a base may predict."""


def one_step_weights(level: float | Tensor, prediction_type: str) -> tuple[float | Tensor, float | Tensor]:
    """(a, b) of the module's table.

    Args:
        level: the level of noise at t: alphas_cumprod[t] (the paper's alpha_t), in (0, 1], or sigma, in
            [0, 1]; weights that depend on it are of its kind.
        prediction_type: one of the table.
    """
    if prediction_type == RESIDUAL:
        return 1.0, -1.0
    if prediction_type == SAMPLE:
        return 0.0, 1.0
    if prediction_type == FLOW_PREDICTION:
        return 1.0, -level
    if prediction_type == V_PREDICTION:
        return level**0.5, -((1 - level) ** 0.5)
    return level**-0.5, -(((1 - level) / level) ** 0.5)


def one_step(z_L: Tensor, prediction: Tensor, level: Tensor, prediction_type: str = EPSILON) -> Tensor:
    """Estimate z_H from z_L and the backbone's prediction in one step. Implements Eq. (2), second line.

    Args:
        z_L: latent (B, C, h, w), taken as the diffused latent at timestep t.
        prediction: B(z_L, t, c), same shape.
        level: a scalar, see `one_step_weights`.
        prediction_type: one of `one_step_weights`.
    """
    a, b = one_step_weights(level, prediction_type)
    return a * z_L + b * prediction
