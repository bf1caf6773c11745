"""Small classic data sets that come with the package, each with the publication it was first printed in."""

import textwrap
from dataclasses import dataclass
from importlib import resources

import pandas as pd

from jmixed.errors import DataError
from jmixed.runtime.arguments import checked


@dataclass(frozen=True)
class Dataset:
    """What is known about one bundled data set.

    Attributes
    ----------
    title : str
        What was measured, in one line.
    columns : dict of str to str
        Meaning and unit of each column, in the order of the file.
    text : tuple of str
        The columns that are labels, not numbers, even where the labels are digits.
    source : str
        The original publication.
    """

    title: str
    columns: dict[str, str]
    text: tuple[str, ...]
    source: str


@checked
def names() -> list[str]:
    """Names of the bundled data sets, in alphabetical order.

    Returns
    -------
    list of str

    Examples
    --------
    >>> from jmixed import datasets
    >>> datasets.names()[:3]
    ['cake', 'dyestuff', 'dyestuff2']
    """
    return sorted(_DATASETS)


@checked
def load(name: str) -> pd.DataFrame:
    """Read a bundled data set into a new DataFrame.

    Grouping columns hold text, also where their labels are digits, so that nothing takes a subject's number for a
    measurement. ``describe(name)`` tells what the columns are and where the data were first published.

    Parameters
    ----------
    name : str
        One of ``names()``.

    Returns
    -------
    DataFrame
        One row per observation, in the order of the publication.

    Raises
    ------
    DataError
        No data set has this name; the message lists those there are.

    Examples
    --------
    >>> from jmixed import datasets
    >>> sleepstudy = datasets.load("sleepstudy")
    >>> sleepstudy.shape
    (180, 3)
    >>> sleepstudy.Subject.iloc[0]
    '308'
    """
    text = _entry(name).text
    with (resources.files("jmixed") / "data_files" / f"{name}.csv").open("rb") as file:
        return pd.read_csv(file, dtype=dict.fromkeys(text, str))


@checked
def describe(name: str) -> str:
    """What a bundled data set holds: its title, its columns with their units, and its original publication.

    Parameters
    ----------
    name : str
        One of ``names()``.

    Returns
    -------
    str
        Several lines, ready to print.

    Raises
    ------
    DataError
        No data set has this name; the message lists those there are.

    Examples
    --------
    >>> from jmixed import datasets
    >>> print(datasets.describe("dyestuff"))
    dyestuff: yield of dyestuff from six batches of an intermediate product
      Batch  label of the batch
      Yield  yield, grams of standard colour
    Source: Davies, O. L. and Goldsmith, P. L. (eds) (1972), Statistical Methods in
      Research and Production, 4th ed., Oliver and Boyd, section 6.4.
    """
    entry = _entry(name)
    width = max(map(len, entry.columns))
    columns = (f"  {column:<{width}}  {meaning}" for column, meaning in entry.columns.items())
    source = textwrap.fill(f"Source: {entry.source}", width=80, subsequent_indent="  ")
    return "\n".join([f"{name}: {entry.title}", *columns, source])


def _entry(name: str) -> Dataset:
    if name not in _DATASETS:
        raise DataError(f"No bundled data set is called {name!r}; there are {', '.join(names())}.")
    return _DATASETS[name]


_DAVIES = (
    "Davies, O. L. and Goldsmith, P. L. (eds) (1972), Statistical Methods in Research and Production, 4th ed., "
    "Oliver and Boyd"
)

_DATASETS = {
    "cake": Dataset(
        title="breaking angle of chocolate cakes: three recipes, six temperatures, fifteen replicates (split plot)",
        columns={
            "replicate": "label of the replicate, numbered anew within each recipe",
            "recipe": "label of the recipe",
            "temperature": "oven temperature as a category",
            "angle": "angle at which the cake broke, degrees",
            "temp": "oven temperature, degrees Fahrenheit",
        },
        text=("replicate", "recipe", "temperature"),
        source=(
            "Cook, F. E. (1938), Chocolate cake, I. Optimum baking temperature, Master's thesis, Iowa State College; "
            "printed in Cochran, W. G. and Cox, G. M. (1957), Experimental Designs, 2nd ed., Wiley, p. 300."
        ),
    ),
    "dyestuff": Dataset(
        title="yield of dyestuff from six batches of an intermediate product",
        columns={"Batch": "label of the batch", "Yield": "yield, grams of standard colour"},
        text=("Batch",),
        source=f"{_DAVIES}, section 6.4.",
    ),
    "dyestuff2": Dataset(
        title="simulated yields laid out like dyestuff, whose estimated variance between batches is zero",
        columns={"Batch": "label of the batch", "Yield": "simulated yield"},
        text=("Batch",),
        source=(
            "Box, G. E. P. and Tiao, G. C. (1973), Bayesian Inference in Statistical Analysis, Addison-Wesley, "
            "section 5.1.2."
        ),
    ),
    "ergostool": Dataset(
        title="effort to rise from four types of stool, nine subjects",
        columns={
            "effort": "perceived effort, Borg scale",
            "Type": "label of the stool",
            "Subject": "label of the subject",
        },
        text=("Type", "Subject"),
        source=(
            "Wretenberg, P., Arborelius, U. P. and Lindberg, F. (1993), Ergonomics; printed in Devore, J. L. (2000), "
            "Probability and Statistics for Engineering and the Sciences, 5th ed., Duxbury."
        ),
    ),
    "machines": Dataset(
        title="productivity of six workers, each three times on three machines",
        columns={"Worker": "label of the worker", "Machine": "label of the machine", "score": "productivity score"},
        text=("Worker", "Machine"),
        source=(
            "Milliken, G. A. and Johnson, D. E. (1992), Analysis of Messy Data, volume I: Designed Experiments, "
            "Chapman and Hall."
        ),
    ),
    "orthodont": Dataset(
        title="growth of a distance in the skull of 27 children, measured at four ages",
        columns={
            "distance": "from the pituitary to the pterygomaxillary fissure, mm",
            "age": "years",
            "Subject": "label of the child",
            "Sex": "Female or Male",
        },
        text=("Subject", "Sex"),
        source=(
            "Potthoff, R. F. and Roy, S. N. (1964), A generalized multivariate analysis of variance model useful "
            "especially for growth curve problems, Biometrika 51, 313-326."
        ),
    ),
    "oxboys": Dataset(
        title="height of 26 boys from Oxford on nine occasions",
        columns={
            "Subject": "label of the boy",
            "age": "standardised age",
            "height": "cm",
            "Occasion": "label of the occasion",
        },
        text=("Subject", "Occasion"),
        source="Goldstein, H. (1987), Multilevel Models in Educational and Social Research, Griffin.",
    ),
    "pastes": Dataset(
        title="strength of a chemical paste: ten batches, three casks of each, two assays of each cask (nested)",
        columns={
            "strength": "paste strength",
            "batch": "label of the delivery batch",
            "cask": "label of the cask, a to c anew in each batch",
            "sample": "label of the cask, unique: batch:cask",
        },
        text=("batch", "cask", "sample"),
        source=f"{_DAVIES}, section 6.5.",
    ),
    "penicillin": Dataset(
        title="growth-free zone around six samples of penicillin on 24 plates (crossed)",
        columns={
            "diameter": "diameter of the zone, mm",
            "plate": "label of the plate",
            "sample": "label of the sample",
        },
        text=("plate", "sample"),
        source=f"{_DAVIES}, section 6.6.",
    ),
    "sleepstudy": Dataset(
        title="reaction time of 18 people over ten days of restricted sleep",
        columns={
            "Reaction": "average reaction time, ms",
            "Days": "days of sleep deprivation",
            "Subject": "label of the person",
        },
        text=("Subject",),
        source=(
            "Belenky, G. et al. (2003), Patterns of performance degradation and restoration during sleep restriction "
            "and subsequent recovery: a sleep dose-response study, Journal of Sleep Research 12, 1-12."
        ),
    ),
}
