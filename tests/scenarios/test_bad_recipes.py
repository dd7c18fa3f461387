"""What can't work is said before anything starts: exit code 2, where, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.scenarios.command import DEMO, Finished, Qpack

COMMANDS = ("build", "check", "plan")


def refused(done: Finished, qpack: Qpack, *words: str) -> None:
    """Exit code 2, one problem with all these words in its line, nothing on stdout, and nothing started."""
    assert done.code == 2, done
    assert done.out == ""
    first, last = done.err.splitlines()[0], done.err.splitlines()[-1]
    for word in words:
        assert word in first
    assert last == "qpack: recipe: 1 problem; nothing was started"
    assert not (qpack.home / "store").exists()
    assert not (qpack.home / "logs").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_typo_in_a_key_is_named_with_its_line_and_the_key_that_was_meant(
    command: str, qpack: Qpack, recipe: Path
) -> None:
    path = qpack.cwd / recipe
    text = path.read_text().replace("group_size", "gruop_size")
    path.write_text(text)
    line = text.splitlines().index("  gruop_size: 32") + 1
    done = qpack(command, recipe)
    refused(done, qpack, f"error[no-such-key] tiny.yaml:{line}: quantize.gruop_size: ", "Did you mean 'group_size'?")


def test_every_problem_is_told_at_once(qpack: Qpack, recipe: Path) -> None:
    path = qpack.cwd / recipe
    path.write_text(path.read_text().replace("group_size", "gruop_size").replace("W4A16", "W4A17") + "extra: 1\n")
    done = qpack("build", recipe)
    assert done.code == 2
    assert [(line.split()[0], line.split(": ")[1]) for line in done.err.splitlines()[:-1]] == [
        ("error[invalid-value]", "quantize.scheme"),
        ("error[no-such-key]", "quantize.gruop_size"),
        ("error[no-such-key]", "extra"),
    ]
    assert "3 problems; nothing was started" in done.err


def test_a_file_that_is_not_yaml_is_named_with_the_line(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / recipe).write_text("name: tiny\nmodel: [\n")
    refused(qpack("build", recipe), qpack, "error[not-yaml] tiny.yaml:3: ")


def test_a_recipe_that_is_not_there_names_those_that_are(qpack: Qpack, recipe: Path) -> None:
    refused(qpack("build", "tinny.yaml"), qpack, "error[no-such-file] tinny.yaml: ", "tiny.yaml")


def test_a_setting_of_the_command_line_is_named_as_such(qpack: Qpack, recipe: Path) -> None:
    refused(qpack("build", recipe, "--set", "quantize.bits=4"), qpack, "error[no-such-key] --set quantize.bits: ")


def test_a_group_size_that_does_not_divide_a_layer_is_named_before_anything_loads(qpack: Qpack) -> None:
    done = qpack("build", DEMO, "--set", "quantize.group_size=128")
    refused(done, qpack, "error[group-size] --set quantize.group_size: model.layers.0.", "576 input channels", " 64")


def test_a_model_folder_without_a_tokenizer_is_refused(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / "model" / "tokenizer.json").unlink()
    refused(qpack("build", recipe), qpack, "error[missing-file]", "model: ", "Copy the tokenizer's files")


def test_a_truncated_safetensors_file_is_named_with_its_sizes(qpack: Qpack, recipe: Path) -> None:
    weights = qpack.cwd / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    done = qpack("build", recipe)
    refused(
        done, qpack, "error[truncated]", "model.safetensors: ", f"{len(whole) - 1000:,}", f"{len(whole):,}", "again"
    )


def test_an_empty_safetensors_file_is_refused(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / "model" / "model.safetensors").write_bytes(b"")
    refused(qpack("build", recipe), qpack, "error[truncated]", "model.safetensors: ", "0 bytes")


def test_a_missing_shard_is_named(qpack: Qpack, recipe: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (qpack.cwd / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(qpack("build", recipe), qpack, "error[missing-shard]", "model-2.safetensors", "Copy")


def test_pickled_weights_are_never_loaded_and_it_says_how_to_convert_them(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / "model" / "model.safetensors").unlink()
    # A pickle that would run a command if anybody loaded it.
    ran = qpack.cwd / "ran"
    (qpack.cwd / "model" / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode())
    done = qpack("build", recipe)
    refused(done, qpack, "error[no-weights]", "pytorch_model.bin", "`save_pretrained`")
    assert not ran.exists()


def test_a_gguf_cut_short_is_refused(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    refused(qpack("build", recipe, "--set", "model.source=cut.gguf"), qpack, "error[truncated]", "cut.gguf: ")


def test_a_model_that_is_not_there_is_named_with_where_it_was_looked_for(qpack: Qpack, recipe: Path) -> None:
    shutil.rmtree(qpack.cwd / "model")
    done = qpack("build", recipe)
    refused(done, qpack, "error[no-such-file] tiny.yaml:3: model.source: ", f"Looked for {qpack.cwd}/model.")


def test_a_package_that_is_not_installed_is_named(qpack: Qpack, recipe: Path) -> None:
    done = qpack("build", recipe, "--set", "model.source=pkg://no-such-package/model.gguf")
    refused(done, qpack, "'no-such-package' is not installed", "pip install")


def test_code_in_the_checkpoint_is_off_and_it_says_how_to_turn_it_on(qpack: Qpack, recipe: Path) -> None:
    config = qpack.cwd / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "code.Model"}}))
    refused(qpack("build", recipe), qpack, "error[own-code]", "set model.trust_remote_code: true")


def test_an_unknown_task_gets_the_one_that_was_meant(qpack: Qpack, recipe: Path) -> None:
    done = qpack("build", recipe, "--set", "evaluate.tasks.0.task=qpack_pica")
    refused(done, qpack, "error[unknown-task] --set evaluate.tasks[0].task: ", "Did you mean 'qpack_piqa'?")


def test_an_empty_calibration_file_is_refused(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / "texts.jsonl").write_text("")
    done = qpack("build", recipe)
    refused(done, qpack, "error[text-source] tiny.yaml:5: calibration.source: ")


def test_a_calibration_file_that_is_not_there_is_refused(qpack: Qpack, recipe: Path) -> None:
    (qpack.cwd / "texts.jsonl").unlink()
    refused(qpack("build", recipe), qpack, "error[text-source] tiny.yaml:5: calibration.source: ")


@pytest.mark.parametrize(
    ("scheme", "target", "instead"), [("W8A8", "blackwell", "FP8_DYNAMIC"), ("W8A16", "cpu", "W4A16")]
)
def test_a_scheme_that_the_hardware_has_no_kernel_for_is_refused_with_one_that_it_has(
    scheme: str, target: str, instead: str, qpack: Qpack, recipe: Path
) -> None:
    settings = [f"quantize.scheme={scheme}", f"serve.target={target}", "quantize.group_size=null"]
    done = qpack("build", recipe, *(part for setting in settings for part in ("--set", setting)))
    refused(done, qpack, "error[no-kernel]", f"use {instead}", "Kernels exist for:")


def test_an_interpreter_that_is_not_there_is_an_environment_error(qpack: Qpack, recipe: Path) -> None:
    done = qpack("build", recipe, "--set", "environments.vllm=/no/such/python")
    assert done.code == 3
    assert "environment[no-interpreter]: /no/such/python" in done.err
    assert "'vllm'" in done.err


def test_on_github_a_problem_is_an_annotation_at_its_line(qpack: Qpack, recipe: Path) -> None:
    path = qpack.cwd / recipe
    path.write_text(path.read_text().replace("group_size", "gruop_size"))
    done = qpack("build", recipe, GITHUB_ACTIONS="true")
    assert "::error file=tiny.yaml,line=12::quantize.gruop_size: " in done.err


def looking(qpack: Qpack, recipe: Path, *settings: str) -> Finished:
    """`plan` of a recipe whose first task has max_samples."""
    more = [part for setting in settings for part in ("--set", setting)]
    return qpack("plan", recipe, "--set", "evaluate.tasks.0.max_samples=40", *more)


def test_looks_need_a_gate_that_could_stop_them_and_no_fixed_number(qpack: Qpack, recipe: Path) -> None:
    done = looking(qpack, recipe, "gates.accuracy_drop=null", "gates.size_ratio=2.0", "evaluate.tasks.0.samples=20")
    assert done.code == 2
    assert "error[exclusive-keys]" in done.err
    assert "error[no-early-gate]" in done.err
