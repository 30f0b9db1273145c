"""Other people's models: plain loss functions of many frameworks, and checks on them.

Nothing here is imported before its framework is known to be installed.
"""

# One line for each file: the framework it needs beyond flax, and its cases.
FILES = {
    "plain": (
        "jax",
        "mlp folded time_major vmapped vmapped_conv stacked looped batch_norm "
        "contrastive",
    ),
    "kernels": (
        "jax",
        "weight_norm quantised quantised_custom masked lora lora_merged tied bilinear "
        "experts experts_dispatched",
    ),
    "dynamics": ("jax", "diagonal_ssm selective_ssm complex_ssm spiking"),
    "objectives": (
        "jax",
        "variational_autoencoder coupling_flow solving_flow closed_form_head "
        "self_distillation policy_gradient mean_loss",
    ),
    "linen": (
        "flax",
        "raw_params conv_batch_norm gru lstm seq2seq scanned_layers tied_transformer "
        "vision_transformer mixer unet",
    ),
    "plain_variants": (
        "jax",
        "time_mixing columns chosen_experts hypernetwork branches lora_frozen "
        "graph_convolution mamba",
    ),
    "meetings": (
        "jax",
        "branch reversed_branch custom_rule counted scaled_statistic phases named_mean "
        "sums generator whole_numbers fused equilibrium stopped_branch",
    ),
    "linen_variants": (
        "flax",
        "scanned_transformer token_mixer weight_norm unet_resized bidirectional "
        "ragged_seq2seq mixture_of_experts",
    ),
    "nnx_variants": ("flax", "grouped_queries lora"),
    "hugging_face_variants": ("transformers", "bart llama"),
    "equinox_variants": ("equinox", "nested_vmap batch_norm"),
    "nnx_models": ("flax", "conv_batch_norm gemma gemma_pair"),
    "hugging_face": ("transformers", "bert gpt2 resnet"),
    "equinox_models": ("equinox", "mlp convnet recurrent_attention"),
    "haiku_models": ("haiku", "mlp lstm resnet"),
    "jraph_models": ("jraph", "batched mapped"),
    "diffrax_models": ("diffrax", "adaptive fixed_steps"),
    "lineax_models": ("lineax", "factors conjugate_gradients checked"),
    "distrax_models": ("distrax", "masked_coupling"),
    "spyx_models": ("spyx", "leaky"),
}
NAMES = [f"{file}.{case}" for file, (_, cases) in FILES.items() for case in cases.split()]
