"""Any transformers decoder as a backbone: agreement, answers, and refusals, on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models.backbone import Backbone, Reluctance, Sampling
from models.hf import HfBackbone, HfConfig
from tests.models import tiny

SHAPE: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "eos_token_id": 0,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
DECODERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "llama-yarn": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, rope_parameters=YARN)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=10)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=16)),
    "neox-partly-turned": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, rotary_pct=0.5)),
}


def _load(folder: Path, model: Any, **config: Any) -> HfBackbone:
    model.save_pretrained(folder)
    tiny.tokenizer().save(str(folder / "tokenizer.json"))
    return HfBackbone.load(HfConfig(model=str(folder), device="cpu", **config))


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_of_other_kinds_agree_with_their_plain_forward(name: str, tmp_path: Path) -> None:
    """Yarn's scaling, a window in every layer, query norms, partly turned heads: logits as transformers'."""
    torch.manual_seed(3)
    backbone = _load(tmp_path / name, DECODERS[name]())
    ids = tiny.ids(90)
    with torch.no_grad():
        plain = backbone.model(torch.tensor([ids]), use_cache=False).logits[0]
    cache = backbone.new_cache(tiny.budgets(rank=8, latent_blocks=20))
    backbone.read(ids[:70], cache)
    torch.testing.assert_close(backbone.logits(ids[70:], cache), plain[70:], atol=5e-5, rtol=1e-4)


def test_the_backbone_keeps_the_interface() -> None:
    """HfBackbone is a models.backbone.Backbone."""
    assert isinstance(tiny.backbone(), Backbone)


def test_greedy_answers_equal_the_plain_model_s() -> None:
    """Token for token what argmax over transformers' own forward gives."""
    backbone, ids = tiny.backbone(), tiny.ids(50)
    expected = list(ids)
    with torch.no_grad():
        for _ in range(15):
            expected.append(int(backbone.model(torch.tensor([expected])).logits[0, -1].argmax()))
            if expected[-1] in backbone.end_ids:
                expected.pop()
                break
    cache = backbone.new_cache(tiny.budgets(ring=64))
    backbone.read(ids[:30], cache)
    assert list(backbone.generate(ids[30:], cache, max_new_tokens=15)) == expected[50:]
    assert list(backbone.generate(ids, max_new_tokens=15)) == expected[50:]


def test_score_is_the_sum_of_log_likelihoods() -> None:
    """With and without a cache, across blocks of the prompt, as computed from the plain logits."""
    backbone, ids = tiny.backbone(), tiny.ids(90)
    with torch.no_grad():
        shares = backbone.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = float(sum(shares[i - 1, ids[i]] for i in range(60, 90)))
    cache = backbone.new_cache(tiny.budgets(ring=100))
    backbone.read(ids[:33], cache)
    assert backbone.score(ids[:60], ids[60:]) == pytest.approx(expected, rel=1e-5)
    assert backbone.score(ids[33:60], ids[60:], cache) == pytest.approx(expected, rel=1e-5)
    assert backbone.score(ids[:60], []) == 0.0


def test_answers_stop_at_the_end_token_and_at_stop_texts() -> None:
    """Neither the end token nor the stop text is part of the answer."""
    backbone, ids = tiny.backbone(), tiny.ids(40)
    answer = list(backbone.generate(ids, max_new_tokens=12, suppress_first=[0]))
    text = backbone.decode(answer)
    assert len(answer) > 4 and not set(answer) & backbone.end_ids
    cut = list(backbone.generate(ids, max_new_tokens=12, stop_texts=[text[3:5]], suppress_first=[0]))
    assert backbone.decode(cut) == text[: text.find(text[3:5])]


def test_first_id_is_never_a_suppressed_one() -> None:
    """Suppressing the greedy choice gives the second best."""
    backbone, ids = tiny.backbone(), tiny.ids(40)
    first = int(backbone.logits(ids)[-1].argmax())
    second = next(iter(backbone.generate(ids, max_new_tokens=1, suppress_first=[first])))
    assert second == int(backbone.logits(ids)[-1].topk(2).indices[1]) != first


@pytest.mark.parametrize("attends", [False, True], ids=["alone", "after_a_cache"])
def test_a_reluctant_first_id_needs_its_lead(attends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins the answer where `score` gives it the margin over the second best, else that one does."""
    backbone, ids = tiny.backbone(), tiny.ids(40)
    cache = backbone.new_cache(tiny.budgets()) if attends else None
    if cache is not None:
        backbone.read(tiny.ids(30), cache)
    first, second = (int(i) for i in backbone.logits(ids, cache)[-1].topk(2).indices)
    lead = backbone.score(ids, [first], cache) - backbone.score(ids, [second], cache)
    assert lead > 0

    def begins_with(token: int, margin: float, **more: Any) -> int:
        reluctant = Reluctance(token=token, margin=margin)
        return next(iter(backbone.generate(ids, cache, 1, reluctant=reluctant, **more)))

    assert begins_with(first, lead) == first
    assert begins_with(first, lead * 1.01) == second
    assert begins_with(second, 1e9) == first  # it is not the likeliest anyway
    assert begins_with(first, lead * 1.01, suppress_first=[first]) == second
    monkeypatch.setattr(backbone, "end_ids", frozenset({second}))
    assert begins_with(first, 1e9) == first  # what would end the answer does not take its place


def test_cancelling_ends_an_answer_within_one_token() -> None:
    """Before the prompt is read, and between two tokens."""
    backbone, ids = tiny.backbone(), tiny.ids(40)
    assert list(backbone.generate(ids, max_new_tokens=10, cancelled=lambda: True)) == []
    got: list[int] = []
    for token in backbone.generate(
        ids, max_new_tokens=10, cancelled=lambda: len(got) >= 3, suppress_first=[0]
    ):
        got.append(token)
    assert len(got) <= 4


def test_sampled_answers_repeat_with_their_seed() -> None:
    """Temperature and seed travel with the question."""
    backbone, ids = tiny.backbone(), tiny.ids(40)

    def ask(seed: int) -> list[int]:
        return list(backbone.generate(ids, max_new_tokens=12, sampling=Sampling(temperature=2.0, seed=seed)))

    assert ask(1) == ask(1)
    assert len({tuple(ask(seed)) for seed in range(5)}) > 1


def test_text_that_spells_a_special_token_stays_text() -> None:
    """An article cannot end a turn or begin one."""
    backbone = tiny.backbone()
    assert backbone.bos == [1]
    assert not set(backbone.encode("<eos> a <bos> b <turn>")) & {0, 1, 2}
    assert backbone.special_id("<turn>") == 2 and backbone.special_id("<none>") is None
    assert backbone.decode([1, *backbone.encode("Hello, you."), 0]) == "Hello, you."


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda b: b.generate([], max_new_tokens=3), "prompt is empty"),
        (lambda b: b.generate([3], max_new_tokens=0), "max_new_tokens is 0"),
        (lambda b: b.generate([3, 9999]), f"token id 9999 is outside the vocabulary of {tiny.VOCABULARY}"),
        (lambda b: b.read([-1], b.new_cache(tiny.budgets())), "token id -1 is outside"),
        (lambda b: b.generate([3], stop_texts=[""]), "stop text is empty"),
    ],
)
def test_wrong_calls_raise_at_once(call: Any, says: str) -> None:
    """Before anything is computed, with what was given."""
    with pytest.raises(ValueError, match=says):
        call(tiny.backbone())


def test_identity_follows_weights_configuration_and_adapter(tmp_path: Path) -> None:
    """Equal files have equal identities, whatever the dtype; other weights have another."""
    assert tiny.backbone().identity != tiny.backbone(seed=1).identity
    same = HfBackbone.load(HfConfig(model=str(tiny.save(tmp_path / "tiny")), device="cpu"))
    assert same.identity == tiny.backbone().identity


def test_adapter_is_merged_and_named(tmp_path: Path) -> None:
    """A peft LoRA folder changes the logits as peft itself would, and the identity."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny.save(tmp_path / "tiny")
    torch.manual_seed(5)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    adapted.save_pretrained(tmp_path / "adapter")
    backbone = HfBackbone.load(HfConfig(model=str(folder), adapter=str(tmp_path / "adapter"), device="cpu"))
    ids = tiny.ids(30)
    with torch.no_grad():
        expected = adapted.eval()(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(backbone.logits(ids), expected, atol=2e-5, rtol=0)
    assert float((backbone.logits(ids) - tiny.backbone().logits(ids)).abs().max()) > 0.01
    assert backbone.identity != tiny.backbone().identity


def test_wrong_models_and_adapters_are_named(tmp_path: Path) -> None:
    """Each refusal says what was given and what to do instead."""
    (tmp_path / "empty").mkdir()
    folder = tiny.save(tmp_path / "tiny")
    pickled = tiny.save(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cases = [
        (HfConfig(model=str(tmp_path / "absent"), device="cpu"), "is no folder"),
        (HfConfig(model=str(tmp_path / "empty"), device="cpu"), r"must hold config.json and \*.safetensors"),
        (HfConfig(model=str(pickled), device="cpu"), "pickled weights are not read"),
        (
            HfConfig(model=str(folder), adapter=str(tmp_path / "empty"), device="cpu"),
            "has no adapter_config.json",
        ),
    ]
    for config, says in cases:
        with pytest.raises(ValueError, match=says):
            HfBackbone.load(config)


def test_a_rotary_embedding_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Cohere turns neighbouring pairs: found by comparing with the plain forward, before anything is read."""
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="gives other logits through the cache than alone"):
        _load(tmp_path / "cohere", CohereForCausalLM(CohereConfig(**GROUPED, use_qk_norm=False)))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dtype": "int8"}, "backbone.dtype is 'int8'"),
        ({"device": "tpu"}, "backbone.device is 'tpu'"),
        ({"threads": -1}, "backbone.threads is -1"),
        ({"model": ""}, "backbone.model is empty"),
    ],
)
def test_wrong_configuration_names_the_field(fields: dict[str, Any], says: str) -> None:
    """Checked before anything is loaded."""
    with pytest.raises(ValueError, match=says):
        HfConfig(**fields)


def test_question_bank_is_recorded_once_and_shared_by_all_caches() -> None:
    """Queries of every full layer, the same tensor in each cache: no session pays for it."""
    backbone = tiny.backbone()
    config = tiny.budgets(heavy=6, heavy_scorer="question_bank")
    first, second = backbone.new_cache(config), backbone.new_cache(config)
    banks = [layer.spec.questions for layer in first.stored]
    assert banks[0] is None and banks[2] is None and banks[1] is not None
    assert banks[1].shape[0] == 4 and banks[1].shape[2] == 16 and banks[1] is second.stored[1].spec.questions
    backbone.read(tiny.ids(150), first)
    restored = type(first).from_bytes(first.to_bytes(), backbone)
    backbone.read(tiny.ids(99, 1), restored)
    backbone.read(tiny.ids(99, 1), first)
    assert restored.to_bytes() == first.to_bytes() == first.fork().to_bytes()


def test_recorded_queries_are_those_of_a_plain_forward() -> None:
    """The bank holds what the model's own query projection and norm give, before rotary embedding."""
    from models.hf import question_bank

    backbone = tiny.backbone()
    layer = backbone.model.model.layers[1]
    seen: list[torch.Tensor] = []
    handle = layer.self_attn.q_norm.register_forward_hook(lambda *a: seen.append(a[2]))
    text, question = question_bank._TEXTS[0], question_bank._QUESTIONS[0]
    ids = [*backbone.bos, *backbone.encode(text), *backbone.encode(question)]
    with torch.no_grad():
        backbone.model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    count = len(backbone.encode(question))
    expected = seen[0][0][:, -count:]
    torch.testing.assert_close(question_bank.record(backbone)[1][:, :count], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    """And what to use instead."""
    with pytest.raises(ValueError, match=r"device is 'cuda', but torch .* sees no GPU; use cpu or auto"):
        HfBackbone.load(HfConfig(device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_and_cpu_agree(tmp_path: Path) -> None:
    """The same folder on the GPU reads and answers as on the CPU; bytes stay flat there too."""
    folder = tiny.save(tmp_path / "tiny")
    config = tiny.budgets(rank=6, latent_blocks=3, heavy=8, heavy_scorer="attention_mass")
    logits = []
    for device in ("cpu", "cuda"):
        backbone = HfBackbone.load(HfConfig(model=str(folder), device=device))
        cache = backbone.new_cache(config)
        before = cache.nbytes
        backbone.read(tiny.ids(300), cache)
        assert cache.nbytes == before
        logits.append(
            backbone.logits(tiny.ids(20, 1), type(cache).from_bytes(cache.to_bytes(), backbone)).cpu()
        )
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=1e-3)
