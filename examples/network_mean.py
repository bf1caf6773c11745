"""A neural network as the mean of a mixed model, trained with optax on mini-batches of groups.

Everyone has a level and a trend of their own. The network alone takes them for noise; with a random intercept and slope
integrated out of the likelihood, what a person's early rows say about the person helps to predict the later ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import jmixed as jm


def simulate(people=120, rows=10, seed=7):
    rng = np.random.default_rng(seed)
    person, time = np.indices((people, rows)).reshape(2, -1)
    x, effects = rng.uniform(-2, 2, person.size), rng.normal(size=(people, 2)) * [1.0, 1.5]
    time = time / rows
    y = np.sin(2 * x) + time**2 + effects[person, 0] + effects[person, 1] * time + rng.normal(0, 0.4, person.size)
    return pd.DataFrame({"y": y, "x": x, "time": time, "person": person})


def network(params, inputs):
    hidden = jnp.tanh(inputs @ params["in"] + params["bias"][None])
    return hidden @ params["out"] + params["constant"]


def train(design, inputs, mixed, steps=600, batch=30, width=16):
    """Parameters that maximise the likelihood, with random effects (mixed) or with independent rows."""
    rng, groups = np.random.default_rng(0), design.counts[0]
    params = {"in": rng.normal(size=(2, width)), "bias": rng.normal(size=width), "out": rng.normal(size=width) / width}
    params |= {"constant": np.zeros(()), "theta": np.array([1.0, 0.0, 1.0]), "log sigma": np.zeros(())}
    solver = optax.adam(0.02)

    def loss(params, chosen):
        rows, part = jm.take_groups(design, chosen)
        residual = part.y - network(params, jnp.asarray(inputs)[rows])
        theta = params["theta"] * mixed
        return jm.marginal_loss(residual, theta, part, jnp.exp(params["log sigma"]), groups) / groups

    @jax.jit
    def step(params, state, chosen):
        updates, state = solver.update(jax.grad(loss)(params, chosen), state)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = solver.init(params)
    for _ in range(steps):
        params, state = step(params, state, rng.choice(groups, batch, replace=False))
    return params


def main():
    data = simulate()
    early = data.time < 0.6
    design = jm.mixedlm("y ~ 1 + (time | person)", data[early]).design
    later, errors = data[~early], {}
    with jax.enable_x64(True):
        for name, mixed in (("network alone", 0.0), ("network with random effects", 1.0)):
            params = train(design, data.loc[early, ["x", "time"]].to_numpy(), mixed)
            residual = data.y.to_numpy() - np.asarray(network(params, jnp.asarray(data[["x", "time"]].to_numpy())))
            seen = pd.DataFrame({"r": residual, "time": data.time, "person": data.person})[early]
            prediction = data.y[~early] - residual[~early]
            if mixed:
                modes: Any = jm.mixedlm("r ~ 1 + (time | person)", seen).fit().ranef()
                effects = modes["person"].to_numpy()
                prediction = prediction + effects[later.person, 0] + effects[later.person, 1] * later.time
            errors[name] = float(np.sqrt(np.mean((later.y - prediction) ** 2)))
            print(f"{name}: root mean square error of the later rows {errors[name]:.3f}")
    if not errors["network with random effects"] < 0.8 * errors["network alone"]:
        raise SystemExit("the random effects should have helped")


if __name__ == "__main__":
    main()
