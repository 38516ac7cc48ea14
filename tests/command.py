"""Runs the command line in this process."""

import sys

from mrcnn_scratch import cli


def mrcnn(*arguments) -> int:
    """``mrcnn ARGUMENTS``; its exit status."""
    before, sys.argv = sys.argv, ["mrcnn", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before
    return 0
