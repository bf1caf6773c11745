"""What is known of a model's arrays when a program is compiled: shapes, sizes, the order of elimination."""

from dataclasses import dataclass

from jmixed.covariance.structure import Structure
from jmixed.errors import ModelError
from jmixed.families.family import Family
from jmixed.residual.independent import Independent
from jmixed.residual.structure import ResidualStructure
from jmixed.runtime import device

DENSE, SPARSE = "dense", "sparse"
"""How the couplings of leaves with a crossed core are kept: all of them, or those that occur."""
EQUATIONS = "equations"
"""All coefficients are eliminated together, from sparse equations: see `jmixed.likelihood.equations`."""
UNPLACED = "unplaced"
"""Levels have no places in blocks: the rows of crossed factors that are fitted by conjugate gradients."""


@dataclass(frozen=True)
class Layout:
    """Everything about a model's arrays that is known when a program is compiled. Holds no names.

    The order of elimination has stages. A stage is a set of independent blocks; a block holds so many slots, one for a
    level, of each of its factors. A nested chain has stages of one factor with one slot; the last stage may be a core
    of several. If not every block lies in one block of each later stage, there are two stages, leaves and one block of
    all that they are crossed with, and `crossed` tells how their couplings are kept. With `EQUATIONS` there is a stage
    for each factor, in no order.
    """

    terms: tuple[Structure, ...]  # in the order of theta
    factors: tuple[tuple[int, ...], ...]  # for each grouping factor the terms that share it; their columns are merged
    stages: tuple[tuple[tuple[int, int], ...], ...]  # (factor, slots) of the members of each
    blocks: tuple[int, ...]  # number of blocks of each stage, rounded up to a bucket size
    levels: tuple[int, ...]  # number of levels of each factor, rounded up likewise
    nested: tuple[tuple[bool, ...], ...]  # nested[f][g]: every level of factor f lies inside one level of factor g
    crossed: str = ""  # empty, `DENSE`, `SPARSE`, `EQUATIONS` or `UNPLACED`
    residual: ResidualStructure = Independent()
    family: Family | None = None  # of the response; None: Gaussian, with all that has a closed form profiled out
    quadrature: int = 1  # nodes for each random effect; one is the Laplace approximation

    @property
    def has_positive_weights(self) -> bool:
        """Whether no weight of a row is ever negative."""
        return self.family is None or self.family.is_log_concave

    def factor_width(self, factor: int) -> int:
        """Number of columns of one level of a factor."""
        return sum(self.terms[t].q for t in self.factors[factor])

    def stage_width(self, stage: int) -> int:
        """Number of columns of one block of a stage."""
        return sum(slots * self.factor_width(f) for f, slots in self.stages[stage])

    @property
    def widest(self) -> int:
        """Rows of the largest dense block that an elimination factors; 0 of sparse equations, which have none."""
        whole = self.crossed not in (EQUATIONS, UNPLACED)
        return max((self.stage_width(s) for s in range(len(self.stages))), default=0) if whole else 0

    def stage_of(self, factor: int) -> int:
        """The stage in which a factor is eliminated."""
        return next(s for s, members in enumerate(self.stages) if any(f == factor for f, _ in members))

    def offset_in_stage(self, factor: int) -> int:
        """First column of a factor's slots inside its stage's block."""
        offset = 0
        for f, slots in self.stages[self.stage_of(factor)]:
            if f == factor:
                return offset
            offset += slots * self.factor_width(f)
        raise KeyError(factor)

    def precedes(self, first: int, second: int) -> bool:
        """Whether a factor is eliminated before another, or in one stage with it and listed first."""
        return self._rank(first) < self._rank(second)

    def _rank(self, factor: int) -> tuple[int, int]:
        return self.stage_of(factor), self.offset_in_stage(factor)

    def fit_bytes(self, fixed: int) -> int:
        """About the memory that a fit takes with so many fixed effects: the largest tables of derivatives."""
        if self.crossed == EQUATIONS:
            return self._equations_bytes(fixed)
        if self.crossed:
            return self._crossed_bytes(fixed)
        total, active, widths = 0, 0, [self.stage_width(s) for s in range(len(self.stages))]
        for s, (width, blocks) in enumerate(zip(widths, self.blocks, strict=True)):
            border = sum(widths[s + 1 :]) + fixed + 1
            active += sum(self.terms[t].size for f, _ in self.stages[s] for t in self.factors[f])
            tables = (1 + active) ** 2
            explained = border**2 * tables * (1 if self.is_summed(s) else blocks)
            total += 8 * (blocks * width * (3 * border * (1 + active) + width * tables) + explained)
        return total

    def _crossed_bytes(self, fixed: int) -> int:
        """Matrices of the core's size, ten and two more for each direction of the leaves, and what else grows."""
        (leaf, core), leaves = (self.stage_width(s) for s in (0, 1)), self.blocks[0]
        active = sum(self.terms[t].size for f, _ in self.stages[0] for t in self.factors[f])
        couplings = leaf * core * leaves * (3 + active) if self.crossed == DENSE else 0
        tables = leaves * leaf * (leaf + fixed + 1) * (1 + active) ** 2
        return 8 * (core**2 * (10 + 2 * active) + couplings + tables)

    def _equations_bytes(self, fixed: int) -> int:
        """Right-hand sides in all pairs of directions, and fronts as pedigrees have them; a plan knows its own."""
        active = sum(term.size for term in self.terms)
        size = sum(levels * self.factor_width(f) for f, levels in enumerate(self.levels))
        return 8 * size * (3 * (fixed + 1) * (1 + active) ** 2 + 100 * (2 + active))

    def is_summed(self, stage: int) -> bool:
        """Whether what the stage explains goes to one block of each later stage: its sum over blocks is one product."""
        return all(count == 1 for count in self.blocks[stage + 1 :])

    def is_nest(self) -> bool:
        """Whether every stage is a chain's, and nothing is crossed."""
        return not self.crossed and all(self.is_chain(stage) for stage in range(len(self.stages)))

    def is_core(self) -> bool:
        """Whether there is one block of all levels, and nothing to eliminate before it."""
        return len(self.stages) == 1 and not self.is_chain(0) and self.blocks == (1,)

    def is_chain(self, stage: int) -> bool:
        """Whether a block of the stage is one level of one factor."""
        return len(self.stages[stage]) == 1 and self.stages[stage][0][1] == 1


def require_memory(needed: int, width: int) -> None:
    """Refuse a fit that would need so many bytes, and leave a block of that width, before any memory is taken."""
    if short := device.shortage(needed):
        raise ModelError(
            f"this would need {short}: its crossed factors leave a dense block of {width} columns. Drop the crossed "
            "factor with the fewer rows per level, or merge its levels; model.fit() of a linear model does without the "
            "block (crossed='iterative')",
            page="scale.md#crossed-factors-of-many-levels",
        )
