"""The command line: ``mrcnn demo | data | train | eval | proposals | predict | ablate | bench``.

A mistake of the user's ends in one line on standard error and exit status 2; a fault of ours keeps its traceback.
"""

import sys
import warnings
from pathlib import Path

import typer

from . import ablate, bench, data, demo, evaluate, predict, proposals, train

app = typer.Typer(
    help="Mask R-CNN from scratch: make data, train, evaluate, predict, rerun the paper's tables.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
app.command()(demo.demo)
app.command()(train.train)
app.command("eval")(evaluate.evaluate)
app.command()(proposals.proposals)
app.command()(predict.predict)
app.command(context_settings={"allow_extra_args": True})(ablate.ablate)

data_app = typer.Typer(help="The embedded data, and checks of your own.", no_args_is_help=True)
data_app.command("make")(data.make)
data_app.command("check")(data.check)
data_app.command("download")(data.download)
app.add_typer(data_app, name="data")

# The benchmarks read their own options: each says what it takes by --help
OWN_OPTIONS = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}, "add_help_option": False
}  # fmt: skip
bench_app = typer.Typer(help="Measures the package against torchvision and onnxruntime.", no_args_is_help=True)
bench_app.command("roi", **OWN_OPTIONS)(bench.roi)
bench_app.command("model", **OWN_OPTIONS)(bench.model)
app.add_typer(bench_app, name="bench")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning of this package as plain text; anyone else's as Python shows it."""
    ours = issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parents[1])
    text = f"mrcnn: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    sys.stderr.write(text)


def main() -> None:
    """Entry point of ``mrcnn``: runs a command, turns a user's mistake into a message and exit status 2."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app(prog_name="mrcnn")
        except (ValueError, OSError) as error:
            print(f"mrcnn: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:  # outside a command: it has no more to say
            print("\nmrcnn: interrupted.", file=sys.stderr)
            sys.exit(130)
