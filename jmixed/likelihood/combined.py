"""Cross-products of whitened rows as combinations of a few that are made once.

Where R(tau) depends on the rows through a few numbers only, as an autoregression of equal steps does, cross-products of
whitened rows are ``sum_j a_j(tau) M_j``, with M_j the cross-products of rows, of those before them and of their
differences. An evaluation is then free of the number of rows, and derivatives in tau are those of the a_j.
"""

from dataclasses import dataclass, replace
from typing import cast

import jax
import jax.numpy as jnp

from jmixed.layout.design import Rows
from jmixed.layout.index import Array
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.moments import moments as cross_products
from jmixed.likelihood.preconditioning import Preconditioners
from jmixed.residual.autoregressive import Markov
from jmixed.residual.independent import Independent


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Combined:
    """Cross-products whose C, B and G are those of J sets of rows, stacked along a first axis; and of series."""

    stacked: Moments
    rows: Rows
    log_weights: Array

    def at(self, rho) -> Moments:
        """The cross-products of rows that are white at rho (k,)."""
        residual, series = cast(Markov, self.rows.layout.residual), self.rows.series
        shares, logdet = residual.shares(rho, series)

        def sum_of(table):
            return jnp.tensordot(shares, table, 1)

        C, B, G = jax.tree.map(sum_of, (self.stacked.C, self.stacked.B, self.stacked.G))
        return replace(self.stacked, C=C, B=B, G=G, log_weights=self.log_weights - logdet)


def can_be_combined(rows: Rows) -> bool:
    """Whether a few sums say all that the deviance needs of the rows."""
    residual = rows.layout.residual
    plain = isinstance(residual, Markov) and not residual.columns and not rows.layout.crossed
    return plain and rows.series.steps is not None


def combined(rows: Rows, columns: Preconditioners) -> Combined | None:
    """The combinations that rows have, or None."""
    if not can_be_combined(rows):
        return None
    residual, series = cast(Markov, rows.layout.residual), rows.series
    layout = replace(rows.layout, residual=Independent())
    plain = cross_products(replace(rows, layout=layout, series=None), columns, False)
    sets = [
        cross_products(replace(some, layout=layout, series=None), columns, False)
        for some in residual.sets(replace(rows, layout=layout), series)
    ]
    C, B, G = jax.tree.map(lambda *tables: jnp.stack(tables), *((sums.C, sums.B, sums.G) for sums in sets))
    return Combined(replace(plain, C=C, B=B, G=G), rows, plain.log_weights)
