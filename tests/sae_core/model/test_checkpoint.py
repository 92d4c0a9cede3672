"""A checkpoint is read whole or refused by name: no weight is random, no BOS invented."""

import json
import shutil
import sys
from contextlib import nullcontext

import pytest
import torch
from comparing import close
from families import N_WORDS, words_tokenizer, write_family
from safetensors.torch import load_file, save_file
from tiny import user_error

from sae_core.model.language_model import load_model

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("llama"), "Llama")


@pytest.fixture
def folder(llama, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(llama, tmp_path / "model")


def change_weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_json(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


# ---- weights ---------------------------------------------------------------------------------------


def further(key: str) -> str:
    """The name of the first layer's weight in a layer that the model has not."""
    return key.replace(".0.", ".9.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {k: v for k, v in w.items() if k != UP}, ["lacks", UP]),
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, ["lacks", "lm_head.weight", "more", "_orig_mod."]),
        (lambda w: w | {UP: torch.zeros(3, 3)}, ["another shape", UP]),
        (lambda w: w | {UP.replace("weight", "bias"): torch.zeros(48)}, ["no place", "up_proj.bias"]),
        (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, ["lacks", "lm_head.weight"]),
        (lambda w: w | {further(k): v.clone() for k, v in w.items() if ".0." in k}, ["no place", "layers.9."]),
    ],
    ids=[
        "one is missing",
        "another prefix",
        "another shape",
        "a bias that nothing reads",
        "no head",
        "a further layer",
    ],
)
def test_weights_that_are_not_the_models_are_refused(folder, change, words):
    change_weights(folder, change)
    with user_error(str(folder), *words):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, {"tie_word_embeddings": True}),
        (lambda w: {k.removeprefix("model."): v for k, v in w.items()}, {}),
        (lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, {}),
        (lambda w: w | {"value_head.weight": torch.zeros(1, 32)}, {}),
    ],
    ids=["tied", "bare model", "an old buffer", "a head of something else"],
)
def test_weights_that_need_not_be_there_or_may_be(folder, change, config):
    """Controls: what is tied or optional is no reason to refuse, and two loads are one model."""
    change_weights(folder, change)
    change_json(folder, "config.json", **config)
    first, second = (load_model(folder, device="cpu") for _ in range(2))
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_key_value_heads")),
        ("num_attention_heads", -4),
        ("hidden_size", "x"),
        ("num_hidden_layers", 1.5),
        ("text_config", {"hidden_size": -1}),
    ],
)
def test_a_model_without_size_is_refused_by_the_name_of_what_it_lacks(folder, name, value):
    change_json(folder, "config.json", **{name: value})
    shown = value["hidden_size"] if isinstance(value, dict) else value
    with user_error(str(folder / "config.json"), f"= {shown!r}", "from 1 up"):
        load_model(folder, device="cpu")


def test_quantised_weights_are_refused_by_name(folder):
    for method in ("gptq", "bitsandbytes", "awq"):
        change_json(folder, "config.json", quantization_config={"quant_method": method, "bits": 4})
        with user_error("quantised", method, "made from"):
            load_model(folder, device="cpu")


@pytest.mark.parametrize("model_type", ["llama", "strange"])
def test_code_that_comes_with_a_model_is_never_run_and_nobody_is_asked(folder, monkeypatch, model_type):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("it asks whether to run the code"))
    (folder / "strange.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').write_text('')\n")
    classes = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}
    change_json(folder, "config.json", model_type=model_type, auto_map=classes)
    change_json(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["strange.Tokenizer", None]})
    with user_error("custom code") if model_type == "strange" else nullcontext():
        load_model(folder, device="cpu")
    assert not (folder / "ran").exists()


def test_a_lora_adapter_says_what_merges_it(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    change_json(tmp_path, "adapter_config.json", base_model_name_or_path=str(llama), peft_type="LORA")
    with user_error("LoRA", str(llama), "pip install peft"):
        load_model(tmp_path, device="cpu")
    change_json(tmp_path, "adapter_config.json", base_model_name_or_path=None)
    with user_error("does not say of which model"):
        load_model(tmp_path, device="cpu")


def test_a_lora_adapter_is_merged(llama, tmp_path):
    """W + (alpha / r) B A, with the tokenizer of the model that it was trained on."""
    pytest.importorskip("peft")
    change_json(tmp_path, "adapter_config.json", base_model_name_or_path=str(llama), peft_type="LORA", r=2)
    change_json(tmp_path, "adapter_config.json", lora_alpha=6, target_modules=["up_proj"], task_type="CAUSAL_LM")
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(48, 2, generator=generator)
    names = [f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_" for layer in (0, 1)]
    adapter = {f"{name}{part}.weight": x.clone() for name in names for part, x in (("A", down), ("B", up))}
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    merged = shutil.copytree(llama, tmp_path / "merged")
    added = dict.fromkeys(("model.layers.0.mlp.up_proj.weight", UP), 3 * up @ down)
    change_weights(merged, lambda w: {key: weight + added.get(key, 0) for key, weight in w.items()})
    tokens = torch.arange(3, 13)[None]
    logits = load_model(tmp_path, device="cpu").logits(tokens)
    close(logits, load_model(merged, device="cpu").logits(tokens), 1e-4)
    assert (logits - load_model(llama, device="cpu").logits(tokens)).abs().max() > 0.1
    save_file({f"other.{key}": x for key, x in adapter.items()}, tmp_path / "adapter_model.safetensors")
    with user_error("missing adapter keys"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_computes_in_the_precision_that_is_asked_for(llama, dtype):
    exact, model = load_model(llama, device="cpu"), load_model(llama, device="cpu", dtype=dtype)
    tokens = torch.arange(3, 13)[None]
    logits, expected = model.logits(tokens), exact.logits(tokens)
    assert exact.dtype is torch.float32 and model.dtype is getattr(torch, dtype)
    assert (
        logits.dtype is torch.float32 and model.record(tokens, model.sites())[model.sites()[0]].dtype is torch.float32
    )
    difference = ((logits - expected).norm() / expected.norm()).item()
    assert difference == 0 if dtype == "float32" else 1e-5 < difference < 0.05


def test_a_precision_that_there_is_not(llama):
    with user_error("float8", "bfloat16"):
        load_model(llama, device="cpu", dtype="float8")


# ---- tokenizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["all", "vocabulary"])
def test_a_missing_tokenizer_says_what_is_needed(folder, missing):
    (folder / "tokenizer.json").unlink()
    if missing == "all":
        (folder / "tokenizer_config.json").unlink()
    with user_error("tokenizer", "tokenizer.json", "beside the weights"):
        load_model(folder, device="cpu")


def test_no_bos_is_invented(tmp_path):
    """Once the end, or a token beyond the vocabulary, was put before every context."""
    for vocab_size in (N_WORDS, N_WORDS + 10):
        model = load_model(
            write_family(tmp_path / str(vocab_size), "Qwen 2", bos=False, vocab_size=vocab_size), device="cpu"
        )
        assert model.bos_id is None and 1 in model.special_ids
        assert model.with_bos([5, 6]) == [5, 6]


def test_a_bos_that_only_the_tokenizers_class_names_is_none(folder):
    change_json(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", bos_token="<s>")
    assert load_model(folder, device="cpu").bos_id == 0
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}))
    model = load_model(folder, device="cpu")
    assert model.tokenizer.bos_token_id == N_WORDS  # which is an untrained row of the padded embedding
    assert model.bos_id is None


@pytest.mark.parametrize(("before", "bos_id"), [(["</s>"], 1), (["w1", "w2"], 0), ([], 0)])
def test_bos_is_what_the_tokenizer_puts_before_a_text(folder, before, bos_id):
    """XGLM declares `<s>` and begins its texts with `</s>`."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = words_tokenizer()
    if before:
        names = [(token, tokenizer.convert_tokens_to_ids(token)) for token in before]
        backend = tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(single=" ".join([*before, "$A"]), special_tokens=names)
    tokenizer.save_pretrained(folder)
    assert load_model(folder, device="cpu").bos_id == bos_id


def test_one_token_for_the_end_and_the_beginning_is_bos_where_it_is_declared_as_both(folder):
    """GPT-2."""
    change_json(folder, "tokenizer_config.json", bos_token="</s>", eos_token="</s>")
    model = load_model(folder, device="cpu")
    assert model.bos_id == 1 and model.with_bos([5]) == [1, 5]


def test_a_text_that_begins_with_bos_gets_no_second_one(llama):
    model = load_model(llama, device="cpu")
    assert model.with_bos(model.to_ids("w3")) == model.with_bos(model.to_ids("<s> w3")) == [0, *model.to_ids("w3")]
    assert model.with_bos(model.to_ids("w3"), prepend=False) == model.to_ids("w3")
    assert model.with_bos([]) == [0]


def test_padding_is_no_content_though_it_is_the_unknown_word_too(folder):
    change_json(folder, "tokenizer_config.json", pad_token="<unk>")
    model = load_model(folder, device="cpu")
    assert model.content(torch.tensor([0, 1, 2, 3])).tolist() == [False, False, False, True]
    change_json(folder, "tokenizer_config.json", pad_token="</s>")
    assert load_model(folder, device="cpu").content(torch.tensor([1, 2])).tolist() == [False, True]
