"""Flax models of `transformers`, from small configurations."""

import jax
import jax.numpy as jnp
import transformers as hf

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def small(model, config, *shape):
    """A model of this class, without weights, for inputs of this shape."""
    return model(config, input_shape=shape, dtype=jnp.float64, _do_init=False)


def variables_of(model):
    """Shapes of its variables."""
    init = lambda key: model.init_weights(key, model.input_shape)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))


def bert() -> Case:
    """Sequence classification; positions and token types are looked up by constants."""
    config = hf.BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=6,
        max_position_embeddings=4,
        num_labels=3,
    )
    model = small(hf.FlaxBertForSequenceClassification, config, 1, 4)
    batch = {
        "input_ids": labels(1, 9, 3, 4),
        "attention_mask": jnp.asarray([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
        "labels": labels(2, 3, 3),
    }

    def loss_fn(params, batch):
        mask = batch["attention_mask"]
        out = model(batch["input_ids"], attention_mask=mask, params=params, train=False)
        return cross_entropy(out.logits, batch["labels"])

    return Case(loss_fn, filled(variables_of(model)), batch)


def gpt2() -> Case:
    """Language model with dropout; as many steps as examples, and as many heads."""
    config = hf.GPT2Config(vocab_size=9, n_positions=4, n_embd=8, n_layer=2, n_head=4)
    model = small(hf.FlaxGPT2LMHeadModel, config, 1, 4)
    batch = {"input_ids": labels(1, 9, 4, 4)}

    def loss_fn(params, batch, key):
        ids = batch["input_ids"]
        out = model(ids, params=params, dropout_rng=key, train=True)
        return cross_entropy(out.logits[:, :-1], ids[:, 1:]).mean(-1)

    return Case(loss_fn, filled(variables_of(model)), batch, jax.random.key(5))


def resnet() -> Case:
    """Batch normalisation in training mode, by `model.module.apply`."""
    config = hf.ResNetConfig(
        num_channels=2,
        embedding_size=4,
        hidden_sizes=[4, 6],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
    )
    model = small(hf.FlaxResNetForImageClassification, config, 1, 8, 8, 2)
    variables = variables_of(model)
    stats = filled(variables["batch_stats"])
    batch = {"pixels": normal(1, 3, 8, 8, 2), "labels": labels(2, 3, 3)}

    def loss_fn(params, batch):
        out, new = model.module.apply(
            {"params": params, "batch_stats": stats},
            batch["pixels"],
            deterministic=False,
            mutable=["batch_stats"],
        )
        return cross_entropy(out.logits, batch["labels"]), new["batch_stats"]

    return Case(loss_fn, filled(variables["params"]), batch)
