"""A student as one GGUF file, for llama.cpp and what is built on it (Ollama, LM Studio, llama-server).

Written tensor by tensor with the `gguf` package of llama.cpp, for the architectures that
`gguf_vocabulary` lists. Their names and shapes are those of llama.cpp's own converter, which is in its repository and
no package.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import Kind, ModelError, Problem
from tutelage.export.gguf_vocabulary import ARCHITECTURES, BLOCK, Vocabulary, check_architecture, vocabulary_for

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

PRECISIONS = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""Of matrices. Vectors, such as the weights of norms, are always float32."""


class Written(NamedTuple):
    """What is in the file."""

    precision: str
    """One of PRECISIONS."""
    matrices: int
    kept: int
    """Matrices in float16 where the precision is a quantised one, since their rows cannot be divided into blocks."""


def own_precision(dtype: torch.dtype) -> str:
    """The precision of weights that are written as they are."""
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(dtype, "f32")


def write_gguf(
    model: nn.Module, tokenizer: Any, path: Path, *, precision: str | None, name: str, begins: bool, ends: list[int]
) -> Written:
    """Write the file.

    precision: one of PRECISIONS; None for that of the model's weights. q4_0 keeps embeddings and output head in q8_0.
    begins: whether prompts begin with the tokenizer's beginning-of-sequence. ends: ids that end an answer, the
    tokenizer's own among them. Raises ModelError for models and tokenizers that cannot be written, and for a model of
    which no matrix can be quantised.
    """
    import gguf

    logging.getLogger("gguf").setLevel(logging.ERROR)
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    architecture = _architecture(config)
    weights = dict(model.state_dict())
    precision = precision or own_precision(model.dtype)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    _add_shape(writer, config)
    rows = weights["model.embed_tokens.weight"].shape[0]
    _add_vocabulary(writer, vocabulary_for(tokenizer, rows), tokenizer, begins, ends)
    writer.add_file_type(_file_type(precision))
    if precision.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    written = _add_tensors(writer, names, _tensors(weights, config), precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _add_tensors(writer: GGUFWriter, names: Any, tensors: Iterator[tuple[str, Tensor]], precision: str) -> Written:
    """names: from those of transformers to those of llama.cpp. Raises ModelError if no matrix takes the precision: the
    file would be another one than its name says."""
    import gguf

    matrices, kept, uneven = 0, 0, set[int]()
    for found, tensor in tensors:
        target = names.get_name(found, try_suffixes=(".weight", ".bias")) or found
        kind = _kind(target, tensor, precision)
        data = gguf.quants.quantize(tensor.float().cpu().contiguous().numpy().astype(np.float32), kind)
        writer.add_tensor(target, data, raw_dtype=kind)
        matrices += tensor.dim() >= 2
        if precision.startswith("q") and kind.name == "F16":
            kept += 1
            uneven.add(tensor.shape[-1])
    if matrices and kept == matrices:
        values = {"precision": precision, "block": BLOCK, "lengths": sorted(uneven)}
        raise ModelError(Problem(Kind.EXPORT_NOT_QUANTISED, values=values))
    return Written(precision, matrices, kept)


def _architecture(config: Any) -> Any:
    from gguf import MODEL_ARCH

    check_architecture(config.to_dict())
    return MODEL_ARCH[ARCHITECTURES[config.model_type]]


def _add_shape(writer: GGUFWriter, config: Any) -> None:
    head = _head_size(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: Any, begins: bool, ends: list[int]) -> None:
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name of byte-level BPE
    writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for end in [end for end in ends if end != tokenizer.eos_token_id][:1]:
        writer.add_eot_token_id(end)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(weights: dict[str, Tensor], config: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the weights as llama.cpp computes with them; an output head that is the embedding is left
    out."""
    tied = torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    for name, tensor in weights.items():
        if name == "lm_head.weight" and tied:
            continue
        if config.model_type == "llama" and ".q_proj." in name:
            tensor = _in_pairs(tensor, config.num_attention_heads)
        elif config.model_type == "llama" and ".k_proj." in name:
            tensor = _in_pairs(tensor, config.num_key_value_heads)
        yield name, tensor
    if config.rope_parameters.get("rope_type", "default") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config.rope_parameters, _head_size(config))


def _in_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in the order of llama.cpp's Llama, which rotates neighbours; transformers rotates the two
    halves of a head."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _llama3_factors(rope: dict[str, Any], head: int) -> Tensor:
    """[head / 2] what Llama 3.1 divides the frequencies by (transformers: `_compute_llama3_parameters`)."""
    frequencies = rope["rope_theta"] ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    factor, low, high = (rope[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)  # 1: not divided
    return (1 / ((1 - share) / factor + share)).float()


def _kind(name: str, tensor: Tensor, precision: str) -> GGMLQuantizationType:
    """The type of a tensor in the file."""
    from gguf import GGMLQuantizationType

    if tensor.dim() < 2:
        return GGMLQuantizationType.F32
    if precision == "q4_0" and name in ("token_embd.weight", "output.weight"):
        precision = "q8_0"
    if precision.startswith("q") and tensor.shape[-1] % BLOCK:
        precision = "f16"
    return GGMLQuantizationType[precision.upper()]


def _file_type(precision: str) -> int:
    from gguf import LlamaFileType

    return int(LlamaFileType.ALL_F32 if precision == "f32" else LlamaFileType[f"MOSTLY_{precision.upper()}"])
