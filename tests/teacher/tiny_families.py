"""Tiny random checkpoints of the families beside BLIP, through the real classes, processors and tokenizers.

Each function saves one into a folder as a user's would be, and returns the folder. Weights have a standard deviation that
lets picture and question move the answers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

SIDE = 32
PATCH = 8
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
LANGUAGE = {**BLOCKS, "num_hidden_layers": 2, "num_key_value_heads": 2}
TEXT = "a the person riding holding bicycle cup dog photo of is there anybody yes Yes no No list what and red big"
WORDS = TEXT.split()


def bytes_tokenizer(special: list[str], **options):
    """A byte-level BPE tokenizer: single bytes, and the words of WORDS whole (with and without a space before)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        pairs = [(word[:end], word[end]) for end in range(1, len(word))]
        for pair in [*pairs, ("Ġ", word)]:
            if pair not in merges:
                merges.append(pair)
            if "".join(pair) not in pieces:
                pieces.append("".join(pair))
    model = models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def seeded(make, config, seed: int = 0, std: float = 0.3):
    """The model with normal weights of ``std / sqrt(fan-in)``-like size: large enough that inputs matter."""
    torch.manual_seed(seed)
    model = make(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, std if "embed" in name else 4.5 * std / parameter[0].numel() ** 0.5)
    return model


def clip(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    tokenizer = bytes_tokenizer(["<|startoftext|>", "<|endoftext|>"], bos_token="<|startoftext|>",
                                eos_token="<|endoftext|>", pad_token="<|endoftext|>")  # fmt: skip
    end_with(tokenizer, "<|endoftext|>", "<|startoftext|>")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**BLOCKS, "vocab_size": len(tokenizer), "max_position_embeddings": 40, **ends, "pad_token_id": 1},
        vision_config={**BLOCKS, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=24,
    )
    seeded(CLIPModel, config, seed).save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    CLIPProcessor(
        CLIPImageProcessorPil(size=size, crop_size={"height": SIDE, "width": SIDE}), tokenizer
    ).save_pretrained(folder)
    return folder


def end_with(tokenizer, end: str, start: str | None = None) -> None:
    """Every encoded text gets these tokens around it."""
    from tokenizers.processors import TemplateProcessing

    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (start, end) if token]
    single = f"{start} $A {end}" if start else f"$A {end}"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)


def siglip(folder: Path) -> Path:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

    tokenizer = bytes_tokenizer(["<pad>", "</s>"], pad_token="<pad>", eos_token="</s>", model_max_length=64)
    end_with(tokenizer, "</s>")
    config = SiglipConfig(
        text_config={**BLOCKS, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**BLOCKS, "image_size": SIDE, "patch_size": PATCH},
    )
    seeded(SiglipModel, config).save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer).save_pretrained(folder)
    return folder


def dinov2(folder: Path, registers: bool = False) -> Path:
    from transformers import (
        BitImageProcessorPil,
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    shape = {key: value for key, value in BLOCKS.items() if key != "intermediate_size"}
    shape |= {"mlp_ratio": 2, "image_size": 48, "patch_size": PATCH}
    if registers:
        seeded(Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**shape, num_register_tokens=2)).save_pretrained(
            folder
        )
    else:
        seeded(Dinov2Model, Dinov2Config(**shape)).save_pretrained(folder)
    size, crop = {"shortest_edge": SIDE + 8}, {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size=size, crop_size=crop, do_center_crop=True, do_rescale=True).save_pretrained(folder)
    return folder


def sentence_encoder(folder: Path, pooling: str | None = "pooling_mode_mean_tokens") -> Path:
    """A BERT in sentence-transformers' layout: ``modules.json`` and ``1_Pooling/config.json``."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    seeded(BertModel, BertConfig(**BLOCKS, vocab_size=len(words), max_position_embeddings=24)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pooling:
        kinds = ("Transformer", "Pooling", "Normalize")
        modules = [{"idx": index, "type": f"sentence_transformers.models.{kind}"} for index, kind in enumerate(kinds)]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        modes = dict.fromkeys(("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"), False)
        (folder / "1_Pooling/config.json").write_text(json.dumps({**modes, pooling: True}))
    return folder


def instructblip(folder: Path) -> Path:
    from transformers import (
        BertTokenizer,
        BlipImageProcessorPil,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        LlamaConfig,
    )

    tokenizer = bytes_tokenizer(
        ["<pad>", "<s>", "</s>", "<image>"], pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in
           (("pad_token_id", "<pad>"), ("bos_token_id", "<s>"), ("eos_token_id", "</s>"))}  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    qformer_tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    config = InstructBlipConfig(
        vision_config={**BLOCKS, "image_size": SIDE, "patch_size": PATCH},
        qformer_config={**BLOCKS, "vocab_size": len(words), "encoder_hidden_size": 32, "cross_attention_frequency": 2},
        text_config=LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer), **ids).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = seeded(InstructBlipForConditionalGeneration, config)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    InstructBlipProcessor(
        BlipImageProcessorPil(size=size), tokenizer, qformer_tokenizer, num_query_tokens=4
    ).save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = bytes_tokenizer(
        ["<pad>", "<s>", "</s>", "<image>"], pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
           "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**BLOCKS, image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer), **ids),
        image_token_index=image,
        vision_feature_layer=-2,
    )
    seeded(LlavaForConditionalGeneration, config).save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)
    return folder


def qwen(folder: Path) -> Path:
    """Saved piece by piece: its processor class cannot be built without torchvision."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
             "<|video_pad|>"]  # fmt: skip
    tokenizer = bytes_tokenizer(marks, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    id_of = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            **LANGUAGE,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": id_of("<|im_start|>"),
            "eos_token_id": id_of("<|im_end|>"),
            "pad_token_id": id_of("<|endoftext|>"),
        },
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
                       "patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]},
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
    )  # fmt: skip
    seeded(Qwen2_5_VLForConditionalGeneration, config).save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": 40 * 40}
    Qwen2VLImageProcessorPil(size=size, patch_size=4, merge_size=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


VISION = {"clip": clip, "siglip": siglip, "dinov2": dinov2}
ANSWERS = {"instructblip": instructblip, "llava": llava, "qwen": qwen}
