"""A transformation of a predictor learnt through the fit: the dose at which an effect is half its largest.

The effect of a dose saturates, dose / (dose + half). `half` is a parameter of what comes before the mixed model, and
the maximised likelihood is a differentiable function of it: each step of the outer search fits the model anew.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import jmixed as jm

HALF = 3.0


def simulate(patients=60, visits=8, seed=3):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), visits)
    dose = rng.gamma(2.0, 3.0, patient.size)
    effect = 8 * dose / (dose + HALF)
    response = 5 + effect + rng.normal(0, 2, patients)[patient] + rng.normal(0, 0.7, patient.size)
    return pd.DataFrame({"response": response, "dose": dose, "patient": patient})


def learn(data, start=1.0, steps=25):
    """The value of `half` with the largest likelihood, and its standard error from the curvature."""
    design = jm.mixedlm("response ~ dose + (1 | patient)", data).design
    dose = design.X[:, 1]

    def negative(log_half):
        effect = dose / (dose + jnp.exp(log_half))
        X = jnp.stack([jnp.ones_like(effect), effect], axis=1)
        return -jm.estimate(design.replace(X=X), reml=False).log_likelihood

    value_and_gradient = jax.jit(jax.value_and_grad(negative))
    solver = optax.lbfgs(linesearch=None, learning_rate=1.0)
    log_half: Any = jnp.log(start)
    state = solver.init(log_half)
    for _ in range(steps):
        value, gradient = value_and_gradient(log_half)
        step: Any = solver.update(gradient, state, log_half, value=value, grad=gradient)
        state, log_half = step[1], log_half + jnp.clip(step[0], -0.5, 0.5)
    nearby = [value_and_gradient(log_half + step)[1] for step in (-1e-4, 1e-4)]
    half = float(jnp.exp(log_half))
    return half, half / float(np.sqrt((nearby[1] - nearby[0]) / 2e-4)), float(abs(value_and_gradient(log_half)[1]))


def main():
    with jax.enable_x64(True):
        half, error, slope = learn(simulate())
    print(f"half of the effect at a dose of {half:.3f} (standard error {error:.3f}); the truth is {HALF}")
    if not (slope < 1e-6 and abs(half - HALF) < 3 * error):
        raise SystemExit(f"the search did not end where it should have: slope {slope:.1e}")


if __name__ == "__main__":
    main()
