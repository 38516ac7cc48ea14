"""Every notebook has what the course promises: goal, prediction, hand example, exercise, check, bug, quiz, summary."""

import re

import pytest
from solved import ROOT, build_notebooks, exercises

SOURCES = sorted((ROOT / "notebooks" / "src").glob("[0-9][0-9]_*.py"))
each = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
PARTS = (
    "**Goal.**", "**Minutes.**", "**Seed.**", "## Predict", "by hand", "## Break it", "## Quiz", "## What you have"
)  # fmt: skip


def cells(source):
    return build_notebooks.read_source(source).cells


def prose(source) -> str:
    return "\n\n".join(cell.source for cell in cells(source) if cell.cell_type == "markdown")


@each
def test_its_parts_stand_in_their_order(source):
    text = prose(source)
    places = [text.find(part) for part in PARTS]
    missing = [part for part, place in zip(PARTS, places, strict=True) if place < 0]
    assert not missing and places == sorted(places), (missing, places)


@each
def test_a_guess_is_asked_for_and_compared(source):
    code = "\n".join(cell.source for cell in cells(source) if cell.cell_type == "code")
    guesses = set(re.findall(r"^(guess_\w+) =", code, re.M))
    assert guesses and all(len(re.findall(rf"\b{guess}\b", code)) > 1 for guess in guesses), guesses
    assert "You guessed" in code


@each
def test_the_quiz_has_five_questions_with_folded_answers(source):
    quiz = prose(source).partition("## Quiz")[2].partition("## What you have")[0]
    assert re.findall(r"^\*\*(\d)\.\*\*", quiz, re.M) == list("12345")
    assert quiz.count("<details><summary>Answer</summary>") == quiz.count("</details>") == 5


@each
def test_every_exercise_has_hints_a_docstring_and_its_check_below(source):
    built = cells(source)
    names = exercises()[source.name[:2]]
    assert names or source.name.startswith("00"), "nothing to write"
    found = [i for i, cell in enumerate(built) if build_notebooks.is_exercise(cell)]
    for i in found:
        (name,) = re.findall(r"^def (my_\w+)", built[i].source, re.M)
        before = built[i - 1].source
        assert built[i - 1].cell_type == "markdown" and f"`{name}`" in before, f"{name}: no text before it names it"
        assert before.count("<details><summary>Hint") >= 2, f"{name}: two hints"
        told = built[i].source.partition('"""')[2]
        assert re.search(r"\([A-Z][^)]*\)|[A-Z] x [A-Z]", told), f"{name}: shapes"
        assert re.search(r"\d", told), f"{name}: a worked number"
        assert built[i + 1].source.startswith("<details><summary>Solution</summary>")
        assert f"check_{name.removeprefix('my_')}({name})" in built[i + 2].source, f"{name}: its check comes next"


@each
def test_minutes_stand_in_the_table_of_contents(source):
    readme = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| \[{source.name[:2]} [^|]*\]\({source.stem}\.ipynb\) \|[^|]+\| (\d+) \|", readme, re.M)
    assert row, "no row in notebooks/README.md"
    told = re.search(r"\*\*Minutes\.\*\* (?:About|Under) (\d+)", prose(source))
    assert told and told[1] == row[1], (told and told[0], row[0])
