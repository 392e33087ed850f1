"""python -m train.evaluate: the figures are right, and none is given for a text that the model knows."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gpt2
from train import evaluate
from train.corpus import open_corpus
from train.trainer import fit


def prose(seed: int, n: int = 3000) -> str:
    """Words in no order at all, an umlaut among them, eight a line."""
    draw = random.Random(seed)
    words = [f"{draw.choice('bdfgklmn')}{draw.choice('aeioü')}{draw.choice('prst')}" for _ in range(n)]
    return "".join(" ".join(words[i : i + 8]).capitalize() + ".\n" for i in range(0, n, 8))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config) -> Path:
    """A folder with two texts, and run/, which was trained on them."""
    folder = tmp_path_factory.mktemp("finished")
    for seed, name in enumerate(("one.txt", "two.txt")):
        (folder / name).write_text(prose(seed), encoding="utf-8")
    texts = (folder / "one.txt", folder / "two.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        fit(replace(config, texts=texts), open_corpus(texts, None), folder / "run", say=lambda sentence: None)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    """A copy without states, so that the texts are looked for where the command runs: beside it."""
    ignored = shutil.ignore_patterns("state")
    run = Path(shutil.copytree(finished, tmp_path / "here", ignore=ignored)) / "run"
    monkeypatch.chdir(run.parent)
    return run


@pytest.fixture
def ask(capsys, tmp_path):
    """ask(...) is what the command wrote as JSON; it must have ended well, and said nothing of a failure."""

    def command(*args) -> dict:
        capsys.readouterr()
        assert evaluate.main([*map(str, args), "--json", "-", "--device", "cpu"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return command


@pytest.fixture
def refusal(capsys):
    """refusal(...) is the line that the command ended with, having printed nothing else than what it waits for."""

    def command(*args) -> str:
        capsys.readouterr()
        assert evaluate.main([*map(str, args), "--device", "cpu"]) == 1
        said = capsys.readouterr()
        *waiting, line = said.err.splitlines()
        assert said.out == "" and line.startswith("error: ") and all(some.endswith(" ...") for some in waiting)
        return line

    return command


@pytest.fixture
def other(tmp_path) -> Path:
    """A text that nobody was trained on."""
    path = tmp_path / "other.txt"
    path.write_text(prose(7, 500), encoding="utf-8")
    return path


def plainly(model, tokenizer, text: str) -> dict[str, float]:
    """The figures of a single text by the shortest way."""
    T, ids = model.config.block_size, torch.tensor([model.config.bos_token_id, *tokenizer.encode(text)])
    p, right = [], []
    for start in range(0, len(ids) - 1, T):
        window = ids[start : start + T + 1]
        rows = model(window[None, :-1])[0][0].double().softmax(-1)
        p += rows[range(len(rows)), window[1:]].tolist()
        right += [(float(row.max()), int(row.argmax()) == int(y)) for row, y in zip(rows, window[1:], strict=True)]
    nats, error = -sum(map(math.log, p)), 0.0
    for i in range(15):
        inside = [pair for pair in right if i / 15 < pair[0] <= (i + 1) / 15]
        error += abs(sum(top for top, _ in inside) - sum(hit for _, hit in inside)) / len(right)
    return {
        "tokens": len(ids) - 1,
        "bits_per_byte": nats / math.log(2) / len(text.encode("utf-8")),
        "nats_per_character": nats / len(text),
        "perplexity": math.exp(nats / len(p)),
        "accuracy": sum(hit for _, hit in right) / len(right),
        "calibration_error": error,
    }


def test_the_figures_of_another_text_are_those_of_a_plain_computation(ask, run, other):
    found, expected = ask(run, other), plainly(*gpt2.load(run, "cpu", "float32"), other.read_text(encoding="utf-8"))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4, rel=1e-5)
    assert found["bytes"] == other.stat().st_size
    assert (found["text"], found["scored"], found["contaminated"], found["notes"]) == ("other", "all of it", False, [])


def test_only_the_last_part_of_a_text_is_scored_where_that_is_asked_for(ask, run, other):
    text = other.read_text(encoding="utf-8")
    found = ask(run, other, "--holdout", "0.1")
    expected = plainly(*gpt2.load(run, "cpu", "float32"), text[len(text) - len(text) // 10 :])
    assert found["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], abs=1e-4)
    assert found["tokens"] == expected["tokens"]


def test_without_a_text_the_record_of_the_run_is_confirmed(ask, run):
    trained = json.loads((run / "best" / "training.json").read_text(encoding="utf-8"))
    for checkpoint in (run, run / "best"):
        found = ask(checkpoint)
        for name, recorded in trained["figures"].items():
            if name.startswith("held_out_"):
                assert found[name.removeprefix("held_out_")] == recorded
        assert found["bytes"] == trained["parts"]["holdout"]["bytes"]
        assert found["memorisation"] == trained["memorisation"]


def test_a_run_knows_where_its_text_lies(ask, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ask(finished / "run")["scored"] == "the part that it never read"


def test_every_document_has_its_own_figure_and_together_they_are_the_whole(ask, run, other):
    found = ask(run)
    assert [row["name"] for row in found["documents"]] == ["one.txt", "two.txt"]
    assert sum(row["bytes"] for row in found["documents"]) == found["bytes"]
    bits = sum(row["bytes"] * row["bits_per_byte"] for row in found["documents"])
    assert bits / found["bytes"] == pytest.approx(found["bits_per_byte"], abs=1e-4)
    folder = other.parent / "others"
    folder.mkdir()
    for seed in (8, 9):
        (folder / f"{seed}.txt").write_text(prose(seed, 300), encoding="utf-8")
    alone = [ask(run, folder / f"{seed}.txt")["bits_per_byte"] for seed in (8, 9)]
    # Windows are cut anew where a text is scored alone.
    assert [row["bits_per_byte"] for row in ask(run, folder)["documents"]] == pytest.approx(alone, abs=0.02)


def test_another_text_is_the_control_of_what_is_written(ask, run, other):
    found = ask(run, other)["memorisation"]
    assert set(found["copied"]) == {"generated", "held_out"}
    assert found["copied"]["held_out"] == 0 and found["extraction"]["train"]["prompts"] > 0


def test_a_text_that_its_record_names_is_refused_with_the_way_out(refusal, run):
    (run / "best" / "overlap.safetensors").unlink()
    said = refusal(run, run.parent / "two.txt", "--holdout", "0.1")
    assert "training.json names two.txt" in said and "Name no text" in said and "--contaminated" in said


def test_a_text_that_shares_too_many_words_is_refused(refusal, run, other):
    lines = (run.parent / "one.txt").read_text(encoding="utf-8").splitlines()[:20]
    other.write_text(prose(7, 500) + "\n".join(line.upper() for line in lines), encoding="utf-8")
    assert "24% of the words stand in runs of 8" in refusal(run, other)


def test_where_no_hashes_were_kept_the_text_itself_tells_what_is_known(refusal, ask, run, other):
    (run / "best" / "overlap.safetensors").unlink()
    assert ask(run, other)["notes"] == []
    other.write_text((run.parent / "one.txt").read_text(encoding="utf-8")[500:], encoding="utf-8")
    assert "% of the words stand in runs of 8" in refusal(run, other)
    (run.parent / "one.txt").unlink()
    assert "What it learned" in (notes := ask(run, other)["notes"])[0] and "overlap.safetensors" in notes[1]


def test_a_text_that_shares_few_words_is_not(ask, run, other):
    lines = (run.parent / "one.txt").read_text(encoding="utf-8").splitlines()[:3]
    other.write_text(prose(7, 500) + "\n".join(lines), encoding="utf-8")
    assert ask(run, other)["contaminated"] is False


def test_contaminated_figures_are_given_under_a_line_that_says_so(run, capsys):
    assert evaluate.main([str(run), str(run.parent / "one.txt"), "--contaminated", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].startswith("CONTAMINATED") and "one.txt" in said.splitlines()[1]
    assert "bits per byte" in said


def test_a_checkpoint_without_a_record_needs_a_text_and_says_what_it_can_not_tell(ask, refusal, run, other):
    for name in ("training.json", "overlap.safetensors"):
        (run / "best" / name).unlink()
    assert "name a text to score" in refusal(run)
    found = ask(run, other)
    assert [note.rpartition(" ")[2] for note in found["notes"]] == ["training.json.", "overlap.safetensors."]
    assert found["memorisation"] is None and found["bits_per_byte"] > 0


def test_a_text_that_is_gone_or_changed_is_named(ask, refusal, run, other):
    with (run.parent / "two.txt").open("a", encoding="utf-8") as file:
        file.write("And more.\n")
    assert "two.txt is not what it was trained on" in refusal(run)
    assert "two.txt" in ask(run, other)["notes"][0]
    (run.parent / "one.txt").unlink()
    assert "cannot read one.txt" in refusal(run)


def test_a_text_that_the_record_says_lies_on_the_hub_is_not_fetched_for_the_sake_of_another(ask, run, other):
    path = run / "best" / "training.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["config"] |= {"texts": [], "corpus": "hf:somebody/everything"}
    path.write_text(json.dumps(record), encoding="utf-8")
    assert "lies on the Hub" in " ".join(ask(run / "best", other)["notes"])


@pytest.mark.parametrize("path", ["/dev/stdin", "..", "../one.txt", "**", "/usr/**/*"])
def test_a_published_record_leads_to_no_other_folder(ask, refusal, run, other, path):
    file = run / "best" / "training.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["config"] |= {"texts": [path]}
    file.write_text(json.dumps(record), encoding="utf-8")
    assert "a path where published ones have a name alone" in " ".join(ask(run / "best", other)["notes"])
    assert "a path where published ones have a name alone" in refusal(run / "best")


def test_a_damaged_record_is_no_missing_one(refusal, run, other):
    (run / "best" / "training.json").write_text("{", encoding="utf-8")
    assert "training.json is not valid JSON" in refusal(run, other)


@pytest.mark.parametrize("record", ["[]", "{}", '{"data": 1}', '{"data": [], "config": 1}', '{"data": [{}]}'])
def test_a_record_of_another_kind_is_none(refusal, run, record):
    (run / "best" / "training.json").write_text(record, encoding="utf-8")
    assert "name a text to score" in refusal(run)


@pytest.mark.parametrize(
    "settings",
    [
        "{}",
        '{"texts": 1}',
        '{"texts": [], "prompts": [], "out": null, "corpus": 1}',
        '{"texts": [], "prompts": [], "out": null, "x": 1}',
    ],
)
def test_a_record_with_a_strange_configuration_is_refused_in_a_sentence(refusal, run, settings):
    record = f'{{"data": [{{"sha256": "1", "name": "one"}}], "config": {settings}}}'
    (run / "best" / "training.json").write_text(record, encoding="utf-8")
    assert "the text that it was trained on is not here" in refusal(run)


def test_a_fine_tuned_model_may_know_more_than_its_record_says(ask, run, other):
    path = run / "best" / "training.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["config"] |= {"init_from": "ada/x", "tokenizer": "inherited"}
    path.write_text(json.dumps(record), encoding="utf-8")
    assert ask(run, other)["notes"] == ["It began as ada/x; what that was trained on is not known here."]


@pytest.mark.parametrize("scale", [math.nan, 1e30, 1e6])
def test_a_model_that_computes_nonsense_gets_no_figure(refusal, run, other, scale):
    model, tokenizer = gpt2.load(run, "cpu", "float32")
    model.transformer.ln_f.weight.fill_(scale)
    gpt2.save(run / "best", model, tokenizer)
    assert "no probabilities" in refusal(run, other)


def test_json_goes_into_a_file_beside_the_table(run, other, tmp_path, capsys):
    assert evaluate.main([str(run), str(other), "--json", str(tmp_path / "found.json"), "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    assert f"{found['bits_per_byte']:.4f}  bits per byte" in said and f"{found['perplexity']:.2f}  perplexity" in said
    assert {"python", "torch"} <= found["versions"].keys() and found["precision"] == "float32" and found["hardware"]
    assert sum(row["tokens"] for row in found["calibration"]) == found["tokens"]


def test_the_table_fits_a_terminal_and_shows_both_ends_of_many_documents():
    rows = [{"name": f"play {n}", "bytes": 1, "bits_per_byte": n / 10} for n in range(13)]
    figures = dict.fromkeys((key for key, _, _ in evaluate.FIGURES), 0.5)
    report = {"checkpoint": "x", "text": "plays", "scored": "all", "notes": [], "bytes": 1, "tokens": 1, **figures}
    novelty = {"unit": "words", "generated": [0.5] * 16, "held_out": [0.5] * 3}
    copy = {"words": 5, "document": "play 1", "line": 1036}
    extraction = {"prompt_tokens": 50, "recited_tokens": 50, "from_window_starts": False} | {
        part: {"prompts": 9, "recited": 0} for part in ("train", "held_out")
    }
    found = {"novelty": novelty, "copied": {"generated": 0, "held_out": 0}, "extraction": extraction}
    found["longest_copy"] = {"generated": copy, "held_out": {"words": 0}}
    said = "\n".join(evaluate.table(report | {"documents": rows, "memorisation": found}))
    assert max(map(len, said.splitlines())) <= 100
    assert "5, play 1, line 1,036" in said and "0 of 9" in said
    assert "3 more" in said and "play 4\n" in said and "play 8\n" in said and "play 5" not in said


@pytest.mark.parametrize("words", [["--holdout", "0.1"], ["t", "--holdout", "1"], ["--json", "no/such/folder.json"]])
def test_arguments_that_make_no_sense_end_with_code_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["checkpoint", *words])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().startswith("usage:")


def test_the_command_runs_by_its_name(run_python):
    finished = run_python("-m", "train.evaluate", "no/such/place")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: no checkpoint at no/such/place") and finished.stderr.count("\n") == 1
