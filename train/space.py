"""A Space: this project's page on the Hugging Face Hub, showing a model from there.

Knows which files of the project the page needs, and what the Hub reads in a Space's README. Knows nothing of how
they get there.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceHardware

from train.upload import Repository

PROJECT = Path(__file__).resolve().parent.parent
PARTS = ("app.py", "LICENSE", "requirements.txt", "gpt2", "page", "checkpoints/shakespeare")
HARDWARE = (SpaceHardware.ZERO_A10G.value, SpaceHardware.CPU_BASIC.value)


def contents(model_id: str, hardware: str | None) -> dict[str, Path | bytes]:
    """The files of a Space that shows a model, by name."""
    files: dict[str, Path | bytes] = {}
    for part in (PROJECT / name for name in PARTS):
        for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
            hidden = any(name.startswith((".", "__pycache__")) for name in path.relative_to(PROJECT).parts)
            if path.is_file() and not hidden:
                files[path.relative_to(PROJECT).as_posix()] = path
    return files | {"README.md": readme(model_id, hardware).encode("utf-8")}


def readme(model_id: str, hardware: str | None) -> str:
    """The Space's README: the project's own front matter, and the model's name."""
    card = SpaceCard((PROJECT / "README.md").read_text(encoding="utf-8"))
    card.data.models = [model_id]
    card.data.suggested_hardware = hardware or HARDWARE[0]
    card.text = (
        f"# {card.data.title}\n\nThe page of [{model_id}](https://huggingface.co/{model_id}): type a prompt, and the "
        "model goes on from it. `MODEL_ID` and `MODEL_REVISION` among this Space's variables choose the model.\n"
    )
    return str(card)


def owned(name: str) -> bool:
    """Whether a file of a Space is ours to remove when the project has it no more."""
    return re.match(r"(gpt2|page|checkpoints/shakespeare)/", name) is not None


def deploy(space_id: str, model_id: str, revision: str, private: bool, hardware: str | None, overwrite: bool) -> str:
    """Make a Space, or bring it up to date, so that it shows a revision of a model; returns what to tell.

    Raises:
        HubError: where it was not done.
    """
    variables = {"MODEL_ID": model_id, "MODEL_REVISION": revision}
    repository = Repository(
        space_id,
        "space",
        private,
        space_sdk="gradio",
        space_hardware=hardware or HARDWARE[0],
        space_variables=[{"key": key, "value": value} for key, value in variables.items()],
    )
    files = contents(model_id, hardware)
    pushed = repository.commit(files, owned, f"The page of {model_id}", overwrite)
    api = repository.api
    with repository.in_words():
        there = {key: variable.value for key, variable in repository.call(api.get_space_variables, space_id).items()}
        for key, value in variables.items():
            if there.get(key) != value:  # each change restarts the Space
                repository.call(api.add_space_variable, space_id, key, value)
        if hardware and not repository.created:
            repository.call(api.request_space_hardware, space_id, hardware)
        secret = repository.call(api.repo_info, model_id).private
    words = f"Space: {repository.url}" + ("" if pushed.changed else " (its files have not changed)")
    if secret:
        words += (
            f"\n{model_id} is private: give the Space a secret HF_TOKEN that may read it, at {repository.url}/settings."
        )
    return words
