#!/usr/bin/env python3
"""What transformers and tokenizers compute, for the tests of the text encoder: ids and vectors of ten sentences, ids of awkward ones.

    pip install torch transformers tokenizers safetensors       # made with torch 2.11.0, transformers 5.24.0, tokenizers 0.23.3
    testdata/text_encoder/reference.py tiny                     # makes tiny/, a BERT of two layers with random weights, anew
    testdata/text_encoder/reference.py FOLDER FILE.json         # the reference of an encoder, as of `make models`

A vector is the mean of the last hidden states over the tokens, scaled to length 1; `first` are its first 16 numbers, `sum` is that of all.
"""
import json, pathlib, sys, torch, transformers
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
SENTENCES = [
    "Red running shoes for women, size 38",
    "The quick brown fox jumps over the lazy dog.",
    "iPhone 15 Pro Max 256GB — unlocked!",
    "Café crème & naïve façade: déjà vu?",
    "手机配件",
    "女士红色跑步鞋，尺码38",
    "小米14手机壳 防摔 透明",
    "新款 summer dress 连衣裙 (2026)",
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "wireless noise-cancelling headphones with 30 hours of battery life, USB-C fast charging, a carrying case, multipoint Bluetooth"
    " pairing and an app that lets you tune the sound to your own hearing",
]
AWKWARD = [
    "", "   ", "\t\n", "İstanbul ŞÖLEN ß ﬁ", "a\u0301b\u200bc\u00add\ufeffe", "x\u0000y\ufffdz\ue000", "«guillemets» “quotes” ‘s ’t", "$5.99+tax=£6^2`~<>|",
    "１２３ ＡＢＣ ｱｲｳ", "カタカナ ひらがな 한국어", "𠀀𪜀 㐀 豈", "नमस्ते दुनिया", "ไทย สวัสดี", "😀👍🏽 emoji", "a" * 100, "b" * 101, "don't re-enter e.g. U.S.A.", "word " * 200,
]


def reference(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval().float()
    if tokenizer.truncation is None:
        tokenizer.enable_truncation(model.config.max_position_embeddings)
    sentences = []
    for text in SENTENCES:
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).last_hidden_state[0]
        mean = hidden.mean(0)
        unit = mean / mean.norm()
        sentences.append(dict(text=text, ids=ids, sum=round(float(unit.sum()), 6), first=[round(float(x), 7) for x in unit[:16]]))
    return dict(sentences=sentences, awkward=[dict(text=text, ids=tokenizer.encode(text).ids) for text in AWKWARD])


def make_tiny(folder):
    """Letters, digits, a few words and signs; 16 units, 2 layers, 4 heads; every array with numbers that matter."""
    folder.mkdir(exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    words = ["run", "##ning", "shoe", "##s", "the", "red", "women", "size", "手", "机", "红", "色", "鞋", "新", ",", ".", "!", "?", "-", "—", "，", "(", ")", "&", ":"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *words]
    tokenizer = dict(
        version="1.0", truncation=None, padding=None, added_tokens=[],
        normalizer=dict(type="BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True),
        pre_tokenizer=dict(type="BertPreTokenizer"),
        post_processor=dict(type="BertProcessing", sep=["[SEP]", 3], cls=["[CLS]", 2]),
        decoder=None,
        model=dict(type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=100, vocab={token: id for id, token in enumerate(vocab)}),
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    torch.manual_seed(7)
    config = transformers.BertConfig(vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=48)
    model = transformers.BertModel(config, add_pooling_layer=False)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.3)
    model.save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1:] == ["tiny"]:
        make_tiny(HERE / "tiny")
        folder, target = HERE / "tiny", HERE / "tiny.json"
    else:
        folder, target = map(pathlib.Path, sys.argv[1:])
    lines = lambda rows: ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    body = ",\n".join(f' "{name}": [\n{lines(rows)}\n ]' for name, rows in reference(folder).items())
    target.write_text("{\n" + body + "\n}\n")
