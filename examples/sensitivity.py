"""What every single observation does to an estimate: one reverse pass through the fit, checked against refits."""

import jax
import numpy as np

import jmixed as jm


def main():
    data = jm.datasets.load("sleepstudy")
    model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data)
    design = model.design

    def slope_sd(y):
        """Standard deviation of the subjects' slopes."""
        found = jm.estimate(design.replace(y=y))
        return found.sigma * jax.numpy.hypot(found.theta[1], found.theta[2])

    with jax.enable_x64(True):
        value, sensitivity = jax.jit(jax.value_and_grad(slope_sd))(design.y)
        sensitivity = np.asarray(sensitivity)
    order = np.argsort(-np.abs(sensitivity))[:5]
    print(f"standard deviation of the slopes: {float(value):.3f} ms per day")
    print(data.assign(change_per_ms=sensitivity).iloc[order].to_string(index=False))

    # Each refit moves one observation up and down by a tenth of a millisecond.
    step = 0.1
    moved = np.concatenate([design.y + sign * step * np.eye(design.y.size)[order] for sign in (1, -1)])
    refits = model.fit_many(moved).var_corr["sd_Days|Subject"].to_numpy()
    differences = (refits[:5] - refits[5:]) / (2 * step)
    gap = np.max(np.abs(differences - sensitivity[order])) / np.max(np.abs(differences))
    print(f"largest relative gap between the reverse pass and the refits: {gap:.1e}")
    if not gap < 1e-5:
        raise SystemExit("the derivatives differ from those of the refits")


if __name__ == "__main__":
    main()
