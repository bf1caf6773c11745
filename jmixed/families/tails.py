"""Distribution functions, also of dispersions so extreme that incomplete gamma and beta functions lose their digits."""

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import betainc, gammainc, gammaincc
from jax.scipy.stats import norm

from jmixed.families.special import at_least_tiny, relative_entropy


def _double(x: Any) -> bool:
    return jnp.finfo(x.dtype).bits > 32


def lugannani_rice(r: Any, u: Any, skewness: Any) -> Any:
    """A distribution function from its saddlepoint: the signed root r of a deviance and the standardised number u."""
    center = jnp.abs(r) < 0.003
    apart = 1 / jnp.where(center, 1, r) - 1 / jnp.where(center, 1, u)
    return norm.cdf(r) + norm.pdf(r) * jnp.where(center, skewness / 6, apart)


def gamma_cdf(ratio: Any, shape: Any) -> Any:
    """P(Y / mean <= ratio) for a gamma distribution of some shape."""
    large = shape > (1e5 if _double(shape) else 1e3)
    root, moved = jnp.sqrt(jnp.where(large, shape, 1)), at_least_tiny(ratio)
    deviance = 2 * relative_entropy(jnp.ones_like(moved), moved, jnp.log(moved))
    r = jnp.sign(ratio - 1) * jnp.sqrt(deviance) * root
    far = lugannani_rice(r, root * (ratio - 1), 2 / root)
    modest = jnp.where(large, 1, shape)
    return jnp.where(large, far, gammainc(modest, modest * ratio))


def beta_cdf(y: Any, a: Any, b: Any) -> Any:
    """P(Y <= y) for a beta distribution."""
    large = jnp.minimum(a, b) > (1e5 if _double(a) else 1e3)
    phi, inside = jnp.where(large, a + b, 2), (y > 0) & (y < 1)
    p, q = jnp.where(large, a, 1) / phi, jnp.where(large, b, 1) / phi
    y = jnp.clip(y, 0, 1)
    x, rest = at_least_tiny(y), at_least_tiny(1 - y)
    entropy = relative_entropy(p, x, jnp.log(x)) + relative_entropy(q, rest, jnp.log(rest))
    deviation = jnp.sqrt(p * q / phi)
    r = jnp.sign(y - p) * jnp.sqrt(2 * phi * entropy)
    far = jnp.where(inside, lugannani_rice(r, (y - p) / deviation, 2 * (q - p) * deviation / (p * q)), y)
    return jnp.where(large, far, betainc(jnp.where(large, 1, a), jnp.where(large, 1, b), y))


def negative_binomial_cdf(y: Any, mean: Any, size: Any) -> Any:
    """P(Y <= y) of counts of variance mean + mean^2 / size, y whole: Poisson's where the size is beyond precision."""
    large = size > 0.2 * jnp.sqrt(mean / float(jnp.finfo(size.dtype).eps))
    modest = jnp.where(large, 1, size)
    return jnp.where(large, gammaincc(y + 1, mean), betainc(modest, y + 1, modest / (modest + mean)))


def student_cdf(z: Any, df: Any) -> Any:
    """P(T <= z): where the degrees of freedom are many, the normal one with a correction to the first order."""
    large = df > (1e5 if _double(df) else 500)
    many, few = jnp.where(large, df, 1), jnp.where(large, 1, df)
    half = 0.5 * betainc(0.5 * few, jnp.full_like(few, 0.5), few / (few + z * z))
    return jnp.where(large, norm.cdf(z * (1 - (z * z + 1) / (4 * many))), jnp.where(z > 0, 1 - half, half))
