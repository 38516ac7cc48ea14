"""The ablation lab: the paper's tables on one machine, with seeds, intervals and claims fixed in advance.

One file a table. ``plan`` says what a table is made of; ``geometry``, ``oracle`` and ``detector_runs`` are the three
tiers; ``runner``, ``statistics``, ``results`` and ``report`` are shared.
"""

from importlib import import_module

TABLES = (
    "table2a", "table2b", "table2c", "table2d", "table2e", "table3", "table5", "table6",
    "roi-geometry", "roi-sensitivity",
)  # fmt: skip


def load_table(name: str):
    """The :class:`plan.Table` of that name.

    Raises:
        ValueError: no such table; lists them.
    """
    if name not in TABLES:
        raise ValueError(f"there is no table {name!r}: choose one of {', '.join(TABLES)}")
    return import_module(f"{__name__}.{name.replace('-', '_')}").TABLE
