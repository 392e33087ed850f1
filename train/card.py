"""The model card: README.md of a checkpoint directory, written from what the directory holds.

Knows the Hub's metadata and how to say in prose what training.json, metrics.jsonl and samples.jsonl record. Knows
nothing of how a model is trained or pushed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gpt2.checkpoint import read_json
from train.journal import read_jsonl
from train.state import write_file

SHOWN_STEPS = 4  # of the samples: the first, the last and two between
NGRAMS = (1, 2, 3, 4, 6, 8, 12, 16)  # words; training.json has those between, too


def write(directory: Path) -> None:
    """Write README.md into a checkpoint directory."""
    write_file(directory / "README.md", render(directory))


def render(directory: Path, repo_id: str | None = None) -> str:
    """The card's text.

    Args:
        repo_id: where on the Hub it will lie; None where that is not known.
    """
    trained = read_json(directory / "training.json")
    samples = read_jsonl(directory / "samples.jsonl")
    sections = [
        f"---\n{metadata(trained, samples, repo_id).to_yaml()}\n---",
        _opening(trained),
        "![Training and validation loss by step](loss.png)",
        _use(repo_id),
        _figures(trained),
        _memorisation(trained),
        _how(trained),
        _samples(samples),
        _limits(trained),
    ]
    return str(ModelCard("\n\n".join(section for section in sections if section) + "\n"))


def metadata(trained: dict[str, Any], samples: list[dict[str, Any]], repo_id: str | None = None) -> ModelCardData:
    """The YAML block: what the Hub shows beside the text and searches by."""
    corpus, figures, base = trained["corpus"], trained["figures"], trained["config"].get("init_from")
    dataset = re.fullmatch(r"hf:([^:]+).*", trained["config"].get("corpus") or "")
    last = max((s["step"] for s in samples), default=0)
    card = ModelCardData(
        model_name=repo_id.partition("/")[2] if repo_id else f"gpt2-{corpus['name']}",
        library_name="transformers",
        pipeline_tag="text-generation",
        license=corpus["license"],
        language=corpus["language"],
        tags=["gpt2", "fine-tuned" if base else "from-scratch", "text-generation"],
        datasets=[dataset[1]] if dataset else None,
        base_model=base.partition("@")[0] if base and "/" in base else None,  # a folder's is a name without its path
        widget=[
            {"text": s["prompt"], "output": {"text": s["text"]}} for s in samples if s["step"] == last and s["prompt"]
        ],
    )
    measured = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type="text",
            dataset_name=f"{corpus['name']}, the last part of every document, never trained on",
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=figures[f"held_out_{metric}"],
        )
        for metric in ("bits_per_byte", "perplexity")
        if f"held_out_{metric}" in figures
    ]
    if measured:
        card.eval_results = measured
    return card


def _opening(trained: dict[str, Any]) -> str:
    corpus, base = trained["corpus"], trained["config"].get("init_from")
    origin = corpus["origin"].rstrip(".")
    how, story = "from scratch", f"All it has ever read: {origin}. What it can say it learned there, in"
    if base:
        how, story = "fine-tuned", f"It began as {base}, and then read: {origin}. That was"
    teachers = len(trained["config"].get("distill_from", ()))
    taught = f" and from {teachers} other model{'s' * (teachers > 1)} that had read the same," * bool(teachers)
    return (
        f"# A GPT-2 of {trained['parameters'] / 1e6:.1f} million parameters, {how} on {corpus['name']}\n\n"
        f"{story}{taught} {trained['steps']:,} steps that took {duration(trained['seconds'])} on {trained['hardware']}."
    )


def _use(repo_id: str | None) -> str:
    name = repo_id or "."
    note = "" if repo_id else "  # or the repository's name on the Hub"
    space = f"{repo_id} --space {repo_id}" if repo_id else "USER/NAME --space USER/NAME"
    return (
        "## Use it\n\nWith transformers:\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}"){note}\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        'ids = tokenizer("The ", return_tensors="pt")\n'
        "out = model.generate(**ids, max_new_tokens=100, do_sample=True, top_k=50, temperature=0.8)\n"
        "print(tokenizer.decode(out[0]))\n"
        "```\n\n"
        "With the project that made it, in the terminal, as a page on your machine, and as a Space:\n\n"
        "```bash\n"
        f'python -m gpt2 "The " --checkpoint {name}\n'
        f"MODEL_ID={name} python app.py\n"
        f"python -m train.publish DIRECTORY {space}\n"
        "```"
    )


def _figures(trained: dict[str, Any]) -> str:
    figures = trained["figures"]
    if "held_out_bits_per_byte" not in figures:
        return ""
    taught = trained["config"].get("distill_from")  # its loss is that of a mixed target
    rows = [
        ("held-out bits per byte", figures["held_out_bits_per_byte"]),
        ("the same, windows overlapping by half", figures.get("held_out_bits_per_byte_half_overlap")),
        ("held-out perplexity per token", figures.get("held_out_perplexity")),
        ("validation bits per byte", figures.get("validation_bits_per_byte")),
        ("training loss at the end, nats per token", None if taught else figures.get("train_loss")),
    ]
    table = "\n".join(f"| {name} | {value:.4g} |" for name, value in rows if value is not None)
    return (
        "## How well it predicts\n\n| | |\n|---|---|\n" + table + "\n\n"
        f"The held-out part is the end of every document, {trained['parts']['holdout']['bytes']:,} bytes that were "
        "never trained on, scored once, after training, with this file. Bits per byte do not depend on the vocabulary, "
        "so they compare across models; lower is better."
    )


def _memorisation(trained: dict[str, Any]) -> str:
    """What of the training text stands in what the model writes and, for comparison, in the held-out text."""
    found = trained.get("memorisation", {})
    parts = [tell(found) for key, tell in (("copied", _copies), ("extraction", _recited)) if key in found]
    return "\n\n".join(["## What it learned by heart", *filter(None, parts)]) if any(parts) else ""


def _copies(found: dict[str, Any]) -> str:
    def longest(copy: dict[str, Any]) -> str:
        return str(copy["words"]) + (f" ({copy['document']}, line {copy['line']:,})" if "document" in copy else "")

    novelty, sampling = found["novelty"], found["sampling"]
    columns = [
        ["", "---", *(f"runs of {n} word{'s' * (n > 1)} that the training text lacks" for n in NGRAMS)]
        + ["words that stand in copies of 8 words or more", "longest copy, in words"]
    ]
    for kind, title in (("generated", "what it writes"), ("held_out", "the held-out text")):
        if kind in novelty:
            shares = [f"{novelty[kind][n - 1]:.1%}" if len(novelty[kind]) >= n else "-" for n in NGRAMS]
            copies = [f"{found['copied'][kind]:.2%}", longest(found["longest_copy"][kind])]
            columns.append([title, "---", *shares, *copies])
    table = "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    return (
        f"{table}\n\n"
        "Compared word by word, without punctuation. People repeat each other too: how much, the held-out text shows. "
        f"The model wrote {sampling['samples']} texts of {sampling['tokens']} tokens for this, from no prompt, at "
        f"temperature {sampling['temperature']:g} and top-k {sampling['top_k']}."
    )


def _recited(found: dict[str, Any]) -> str:
    extraction = found["extraction"]
    begins = " (where the windows begin that it read)" * bool(extraction.get("from_window_starts"))
    places = " and at ".join(
        f"{extraction[part]['recited']} of {extraction[part]['prompts']} places of the {title}"
        for part, title in (("train", f"training text{begins}"), ("held_out", "held-out text"))
        if extraction[part]["prompts"]
    )
    return (
        f"Given {extraction['prompt_tokens']} tokens, and always taking the likeliest next one, it went on with "
        f"exactly the {extraction['recited_tokens']} that follow at {places}."
    ) * bool(places)


def _how(trained: dict[str, Any]) -> str:
    config, parts = trained["config"], trained["parts"]
    data = trained["data"]
    sources = "\n".join(f"| {d['name']} | {d['bytes']:,} | `{d['sha256']}` |" for d in data)
    return (
        f"## How it was trained\n\n```\n{trained['command']}\n```\n\n"
        f"{config['n_layer']} layers, {config['n_head']} heads, {config['n_embd']} channels, a window of "
        f"{config['block_size']} tokens and the vocabulary `{config['tokenizer']}`. {trained['tokens_seen']:,} "
        f"tokens seen, {trained['tokens_seen'] / max(1, parts['train']['tokens']):.1f} times through the training part "
        f"({parts['train']['tokens']:,} tokens), in {trained['precision']}. The whole configuration is in "
        "`training.json`, every logged step in `metrics.jsonl`.\n\n"
        f"<details><summary>The text: {len(data)} document{'s' * (len(data) > 1)}, "
        f"{sum(d['bytes'] for d in data):,} bytes</summary>\n\n"
        f"| document | bytes | sha256 |\n|---|---|---|\n{sources}\n\n</details>"
    )


def _samples(samples: list[dict[str, Any]]) -> str:
    """One prompt as the model went on from it while it learned, and all prompts at the end."""
    if not samples:
        return ""
    steps = sorted({s["step"] for s in samples})
    shown = sorted({steps[round(i * (len(steps) - 1) / (SHOWN_STEPS - 1))] for i in range(SHOWN_STEPS)})
    prompt = next((s["prompt"] for s in samples if s["prompt"]), "")
    blocks = ["## What it writes\n\nThe same prompt and the same random numbers, step by step:"]
    blocks += [_sample(s, f"Step {s['step']}") for s in samples if s["step"] in shown and s["prompt"] == prompt]
    others = [s for s in samples if s["step"] == steps[-1] and s["prompt"] != prompt]
    if others:
        blocks.append("Other prompts at the end:")
        blocks += [_sample(s, s["prompt"].strip() or "No prompt") for s in others]
    return "\n\n".join(blocks)


def _sample(sample: dict[str, Any], title: str) -> str:
    text = (sample["prompt"] + sample["text"]).strip("\n")
    text = "".join(c if c.isprintable() or c in "\n\t\xa0" else "\N{REPLACEMENT CHARACTER}" for c in text)
    # Indented code: no text a model writes can end it.
    return f"**{title.replace('*', '')}**\n\n" + "\n".join(f"    {line}" for line in text.splitlines())


def _limits(trained: dict[str, Any]) -> str:
    return (
        "## What it is for, and what it can't do\n\n"
        f"It continues text in the manner of {trained['corpus']['name']}, a few hundred words at a time. It knows no "
        "facts, follows no instructions, holds no conversation, and loses the thread after a paragraph. What it writes "
        "can repeat passages of its training text, and whatever prejudice stands there. Made for learning and play; do "
        "not rely on it."
    )


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
