"""Build a tiny byte-level model in code, for tests, examples and first experiments.

It needs no download and no account. It is a normal Hugging Face model with a Hugging Face
tokenizer, and is saved, loaded and trained like any other. Its weights are untrained, drawn from a
seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbiter.train.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BYTES = 256
"""Token ids 0 to 255 are the bytes themselves."""
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
"""The tokens after the bytes: ids 256, 257 and 258."""
VOCABULARY = BYTES + len(SPECIAL_TOKENS)
CONTEXT = 4096
"""Context length of the tiny model, in tokens."""
INIT_STD = 0.02
"""Standard deviation of the untrained weights, small enough that all bytes start about equally
likely."""

CHAT_TEMPLATE = """\
{%- macro turn(role, content) -%}
{{ bos_token + role + '\\n' + content + eos_token + '\\n' }}
{%- endmacro -%}
{%- if tools -%}
{{ turn('tools', tools | tojson) }}
{%- endif -%}
{%- for message in messages -%}
{%- set ns = namespace(text=message.content or '') -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- set values = function.arguments if function.arguments is defined else {} -%}
{%- set written = {'name': function.name, 'arguments': values} | tojson -%}
{%- set line = '\\n' if ns.text else '' -%}
{%- set ns.text = ns.text + line + '<tool_call>' + written + '</tool_call>' -%}
{%- endfor -%}
{{ turn(message.role, ns.text) }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ bos_token + 'assistant\\n' }}
{%- endif -%}
"""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer whose token ids are the bytes of the text in UTF-8.

    A turn of a chat is `<|bos|>role`, a newline, the content, `<|eos|>`, a newline. Tool calls are
    written after the content, one per line, without their ids, which are random. Every text
    round-trips; ids that are not valid UTF-8 decode to the replacement character.
    """
    transformers = require("transformers", extra="train")
    tokenizers = require("tokenizers", extra="train")
    # The order of this table fixes the ids: the character of byte b gets id b.
    vocabulary = {character: byte for byte, character in enumerate(_byte_alphabet())}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    bos, eos, pad = SPECIAL_TOKENS
    core.add_special_tokens([bos, eos, pad])
    tokenizer: PreTrainedTokenizerFast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(seed: int = 0) -> PreTrainedModel:
    """Build an untrained Llama of 0.4 million parameters in float32; same seed, same weights.

    The weights are drawn from a separate generator in the order of their names, so they depend
    neither on the version of transformers nor on the global random state, which is not changed.
    """
    torch = require("torch", extra="train")
    transformers = require("transformers", extra="train")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BYTES,
        eos_token_id=BYTES + 1,
        pad_token_id=BYTES + 2,
    )
    # The constructor draws initial weights from the global generator; the fork discards that.
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Sorted by name, so that the seed gives the same weights in every version of
        # transformers.
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(1.0)  # the scale of a normalisation
            else:
                parameter.normal_(0.0, INIT_STD, generator=generator)
    return model.eval()


def _byte_alphabet() -> list[str]:
    """Return the printable character that the byte-level pre-tokenizer uses for each byte.

    Bytes with a visible Latin-1 character keep it; the others take the characters from 256 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(BYTES)]
