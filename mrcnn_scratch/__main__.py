"""``python -m mrcnn_scratch``: the command line, for ``torchrun -m mrcnn_scratch train ...``."""

from .cli import main

if __name__ == "__main__":
    main()
