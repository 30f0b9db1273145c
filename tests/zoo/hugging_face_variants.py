"""More models of `transformers`: encoder and decoder, grouped queries."""

import transformers as hf

from tests.zoo.case import Case, cross_entropy, filled, labels
from tests.zoo.hugging_face import small, variables_of


def bart() -> Case:
    """Encoder and decoder; positions are looked up by constants, one table is shared."""
    config = hf.BartConfig(
        vocab_size=9,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=6,
        decoder_ffn_dim=6,
        max_position_embeddings=4,
    )
    model = small(hf.FlaxBartForConditionalGeneration, config, 1, 3)
    batch = {"source": labels(1, 9, 3, 3), "target": labels(2, 9, 3, 4)}

    def loss_fn(params, batch):
        source, target = batch["source"], batch["target"]
        inputs = {"decoder_input_ids": target[:, :-1], "params": params, "train": False}
        return cross_entropy(model(source, **inputs).logits, target[:, 1:]).mean(-1)

    return Case(loss_fn, filled(variables_of(model)), batch)


def llama() -> Case:
    """Rotary positions, grouped queries, gated layers; heads as examples."""
    config = hf.LlamaConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=5,
    )
    model = small(hf.FlaxLlamaForCausalLM, config, 1, 5)
    batch = {"ids": labels(1, 9, 4, 5)}

    def loss_fn(params, batch):
        logits = model(batch["ids"], params=params, train=False).logits
        return cross_entropy(logits[:, :-1], batch["ids"][:, 1:]).mean(-1)

    return Case(loss_fn, filled(variables_of(model)), batch)
