"""The command line: ``python -m jmixed FORMULA --data FILE`` fits a model and prints its summary."""

import argparse
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pandas as pd

from jmixed import datasets
from jmixed.errors import DataError, FormulaError, JmixedError
from jmixed.model import mixedlm
from jmixed.runtime.compilation import enable_compilation_cache

EPILOG = """examples:
  python -m jmixed "Reaction ~ Days + (Days | Subject)" --data sleepstudy
  python -m jmixed "score ~ age" --groups school --vc "classroom=0 + C(classroom)" --data scores.csv --ml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the model that the arguments, by default those of the process, describe, and print its summary.

    The exit status is 0, or 2 for bad input or output that cannot be written, with one line on standard error.
    """
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
            result = mixedlm(data=data, **_arguments(options)).fit(reml=not options.ml)
        except JmixedError as error:
            print(f"jmixed: error: {_one_line(error)}".replace('missing="drop"', "--missing drop"), file=sys.stderr)
            return 2
    return _print_out(str(result.summary()))


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


def _parser():
    parser = _Parser(
        prog="python -m jmixed",
        description="Fit a linear mixed model and print its summary.",
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
    parser.add_argument(
        "--missing", choices=("none", "drop", "raise"), default="none", help="rows with missing values (none: an error)"
    )
    return parser


def _arguments(options) -> dict:
    """The keyword arguments of `mixedlm`."""
    components = {}
    for text in options.vc:
        name, equals, formula = text.partition("=")
        if not equals or not name.strip() or not formula.strip():
            raise FormulaError(f'--vc {text!r}: write NAME=FORMULA, for example "classroom=0 + C(classroom)"')
        components[name.strip()] = formula.strip()
    chosen = {"groups": options.groups, "re_formula": options.re, "vc_formula": components or None}
    chosen |= {"weights": options.weights, "offset": options.offset}
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"formula": options.formula, "missing": options.missing, **given}


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
