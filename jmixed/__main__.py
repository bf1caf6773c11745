"""The command line: ``python -m jmixed FORMULA --data FILE`` fits a model and prints its summary."""

import argparse
import gc
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from jmixed import datasets
from jmixed.errors import DataError, FormulaError, JmixedError, ModelError
from jmixed.families.registry import family_of
from jmixed.model import mixedglm, mixedlm
from jmixed.runtime import executables
from jmixed.runtime.compilation import enable_compilation_cache, kept_directory
from jmixed.runtime.interpreted import compiling_at_once

EPILOG = """examples:
  python -m jmixed "Reaction ~ Days + (Days | Subject)" --data sleepstudy
  python -m jmixed "score ~ age" --groups school --vc "classroom=0 + C(classroom)" --data scores.csv --ml
  python -m jmixed "visits ~ age + (1 | clinic)" --family poisson --offset log_time --data visits.csv
  python -m jmixed warm school pupil --data scores.csv   compile the usual models of these groups ahead
  python -m jmixed cache           where compiled programs are kept, and how much room they take
  python -m jmixed cache --clear   delete them
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the model that the arguments, by default those of the process, describe, and print its summary.

    The exit status is 0, or 2 for bad input or output that cannot be written, with one line on standard error.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if command := {"cache": _cache, "warm": _warm}.get(arguments[0] if arguments else ""):
        return command(arguments[1:])
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _print_warning
        try:
            enable_compilation_cache()
        except OSError as error:
            print(f"jmixed: warning: no compilation cache ({error})", file=sys.stderr)
        try:
            data = read_table(options.data)
            result = _fitted(data, options)
        except JmixedError as error:
            print(f"jmixed: error: {_one_line(error)}".replace('missing="drop"', "--missing drop"), file=sys.stderr)
            return 2
    return _print_out(str(result.summary()))


def _cache(arguments: Sequence[str]) -> int:
    """Say where compiled programs are kept and how much room they take, or delete them."""
    parser = _Parser(prog="python -m jmixed cache", description="Compiled programs that are kept on disk.")
    parser.add_argument("--clear", action="store_true", help="delete them")
    clear = parser.parse_args(arguments).clear
    directory = kept_directory()
    if directory is None:
        return _print_out("no programs are kept: JMIXED_CACHE says so, or there is no directory that is yours alone")
    if clear:
        return _print_out(f"{directory}: {executables.clear(directory)} programs deleted")
    programs = executables.kept(directory)
    megabytes = sum(size for _, size, _ in programs) / 1e6
    return _print_out(
        f"{directory}: {len(programs)} programs, {megabytes:.1f} MB of at most {executables.ROOM / 1e6:.0f}"
    )


USUAL = ("1 |", "x |", "x ||", "x + z |")
"""Random effects of the first factor in the models that `warm` compiles."""


def _warm(arguments: Sequence[str]) -> int:
    """Compile the programs of the usual models of some factors, for data as long as these, before they are needed."""
    parser = _Parser(
        prog="python -m jmixed warm",
        description="Compile the usual models of some groups ahead, for all data of this size: random intercepts and "
        "slopes with up to six fixed effects, by REML and ML, their summaries and tests.",
    )
    parser.add_argument("groups", nargs="+", metavar="COLUMN", help="of the groups; the first has slopes, too")
    parser.add_argument("--data", required=True, metavar="FILE", help="a CSV or Parquet file, or a bundled data set")
    options = parser.parse_args(arguments)
    if kept_directory() is None:
        parser.error("no programs are kept: JMIXED_CACHE says so, or there is no directory that is yours alone")
    try:
        table = read_table(options.data)
        if unknown := [name for name in options.groups if name not in table]:
            raise DataError(f"--data {options.data!r} has no column {unknown[0]!r}: it has {', '.join(table.columns)}")
        factors = table.filter(items=options.groups).dropna()
        for effects in USUAL:
            random, start = " + ".join([f"({effects} {{}})", *["(1 | {})"] * (len(options.groups) - 1)]), time.time()
            _compile(random, factors)
            if status := _print_out(f"{random.format(*options.groups)}: {time.time() - start:.1f} s"):
                return status
    except JmixedError as error:
        print(f"jmixed: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return _cache([])


def _compile(random: str, factors: pd.DataFrame) -> None:
    """Fit what has these random effects, with a place for each factor, to a response and predictors of noise."""
    names = [f"g{k}" for k in range(factors.shape[1])]
    noise = np.random.default_rng(0).normal(size=(3, len(factors)))
    data = factors.set_axis(names, axis=1).assign(**dict(zip("yxz", noise, strict=True)))
    # Effects that are not there have variances of zero, which is no news.
    with warnings.catch_warnings(action="ignore"), compiling_at_once():
        for reml in (True, False):
            result = mixedlm(f"y ~ x + z + {random.format(*names)}", data).fit(reml=reml)
            result.summary()
            result.test()


def _fitted(data, options):
    """The result of the model that the options state."""
    if options.family is None:
        stated = {name: getattr(options, name) for name in GENERALIZED}
        if names := [name for name, value in stated.items() if value is not None]:
            raise ModelError(f"--{names[0].replace('_', '-')} belongs to a response with a family: give --family, too")
        return mixedlm(data=data, **_arguments(options)).fit(reml=not options.ml)
    family = family_of(options.family)
    if options.link is not None:
        family = replace(family, link=options.link)
    stated = {name: value for name in GENERALIZED[1:] if (value := getattr(options, name)) is not None}
    return mixedglm(data=data, family=family, **_arguments(options), **stated).fit()


def _print_out(text: str) -> int:
    """Print to standard output, and give the exit status: whoever reads it may have enough, or its disk be full."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        print(f"jmixed: error: the summary cannot be written: {error}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like all others."""

    def error(self, message) -> NoReturn:
        self.exit(2, f"jmixed: error: {message}; see {self.prog} --help\n")


GENERALIZED = ("link", "trials", "zero_inflation", "quadrature")
"""Options that a response with a family has."""


def _parser():
    parser = _Parser(
        prog="python -m jmixed",
        description="Fit a mixed model, linear or generalized, and print its summary.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("formula", help='response and effects, as in "y ~ x + (x | g)" or, with --groups, "y ~ x"')
    parser.add_argument("--data", required=True, metavar="FILE", help="a CSV or Parquet file, or a bundled data set")
    parser.add_argument("--groups", metavar="COLUMN", help="column of the groups (a formula without bars)")
    parser.add_argument("--re", metavar="FORMULA", help="formula of the random effects (with --groups)")
    parser.add_argument(
        "--vc", action="append", default=[], metavar="NAME=FORMULA", help="a variance component; repeat for more"
    )
    parser.add_argument("--weights", metavar="COLUMN", help="column of positive weights")
    parser.add_argument("--offset", metavar="COLUMN", help="column that is added to the linear predictor")
    parser.add_argument("--ml", action="store_true", help="maximum likelihood instead of REML")
    parser.add_argument("--family", metavar="NAME", help="a response that is not normal: binomial, poisson, ...")
    parser.add_argument("--link", metavar="NAME", help="link of the family, where it is not the usual one")
    parser.add_argument("--trials", metavar="COLUMN", help="column of the numbers of trials (successes)")
    parser.add_argument(
        "--dispersion", metavar="FORMULA", help="what the residual variance or the dispersion depends on"
    )
    parser.add_argument("--zero-inflation", metavar="FORMULA", help="what an extra probability of zero depends on")
    parser.add_argument("--quadrature", type=int, metavar="NODES", help="nodes of quadrature (Laplace without)")
    parser.add_argument(
        "--missing", choices=("none", "drop", "raise"), default="none", help="rows with missing values (none: an error)"
    )
    return parser


def _arguments(options) -> dict:
    """The keyword arguments that `mixedlm` and `mixedglm` have in common."""
    components = {}
    for text in options.vc:
        name, equals, formula = text.partition("=")
        if not equals or not name.strip() or not formula.strip():
            raise FormulaError(f'--vc {text!r}: write NAME=FORMULA, for example "classroom=0 + C(classroom)"')
        components[name.strip()] = formula.strip()
    chosen = {"groups": options.groups, "re_formula": options.re, "vc_formula": components or None}
    chosen |= {"weights": options.weights, "offset": options.offset, "dispersion": options.dispersion}
    stated = {name: value for name, value in chosen.items() if value is not None}
    return {"formula": options.formula, "missing": options.missing, **stated}


def read_table(source: str) -> pd.DataFrame:
    """Read a table from a file, or a bundled data set by name; a file wins over a data set of the same name.

    A path ends in .csv, .csv.gz, .tsv, .txt, .parquet or .pq.
    """
    path = Path(source)
    if not path.is_file():
        if source in datasets.names():
            return datasets.load(source)
        known = ", ".join(datasets.names())
        raise DataError(f"--data {source!r}: there is no such file, and no such bundled data set (these are: {known})")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        # pandas would rename the second of two columns; the names are read as they stand, for the model to refuse.
        header = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
        table = pd.read_csv(path, sep=separator)
        return table.set_axis(list(header), axis=1) if header[header != ""].duplicated().any() else table
    except ImportError as error:
        raise DataError(f"--data {source!r}: Parquet files need pyarrow: pip install pyarrow") from error
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise DataError(f"--data {source!r}: cannot be read as a table: {error}") from error


def _print_warning(message, category, filename, lineno, file=None, line=None):
    print(f"jmixed: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(message) -> str:
    """A message without its line breaks: the formula that it shows follows a colon, the mark under it is left out."""
    text, _, shown = str(message).partition("\n\n")
    lines = [
        " ".join(" ".join(line.split()) for line in part.splitlines() if line.strip(" ^")) for part in (text, shown)
    ]
    return ": ".join(line for line in lines if line)


if __name__ == "__main__":
    # What is imported, and at the end everything, stays as long as the process: to look for garbage in it, several
    # times over when Python ends, would take as long as the fit.
    gc.freeze()
    status = main()
    gc.freeze()
    sys.exit(status)
