"""Limited-memory BFGS (optax): a way down for functions whose Hessian is dear, without a certificate of the end."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def descend(function: Callable, x, gradient_tolerance, limit):
    """Go down from x (m,) until the norm of the gradient is below a tolerance: where it ends, and how many steps."""
    import optax

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(function)

    def proceed(carry):
        x, state, _, count = carry
        value, gradient = value_and_grad(x, state=state)
        updates, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=function)
        return optax.apply_updates(x, updates), state, jnp.linalg.norm(gradient), count + 1

    # optax mixes integers of two widths, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        x, _, _, count = jax.lax.while_loop(
            lambda carry: (carry[2] > gradient_tolerance) & (carry[3] < limit),
            proceed,
            (x, solver.init(x), jnp.full((), jnp.inf, x.dtype), jnp.zeros((), jnp.int32)),
        )
    return jnp.asarray(x), count
