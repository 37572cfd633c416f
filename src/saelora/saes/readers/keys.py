"""Entries of each format's configuration that are known: those that are read, and those that change nothing.

The latter say where an SAE comes from or how it was trained. Each table was collected from every configuration class in
the history of the library that writes the format. What is in none of them is refused unless it is off (`common`).
"""


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


# SAELens, versions 1 to 6; beside these, the fields of its class for the architecture (`saelens._fields`)
SAELENS_READ = _words(
    "activation_fn activation_fn_str activation_fn_kwargs architecture metadata finetuning_scaling_factor",
    "hook_head_index hook_point_head_index hook_name hook_name_out hook_point model_from_pretrained_kwargs",
)
SAELENS_NEUTRAL = _words(
    "model_name model_class_name model_kwargs hook_layer hook_point_layer hook_eval hook_point_eval dataset_path",
    "dataset_name dataset_trust_remote_code is_dataset_tokenized streaming context_size prepend_bos",
    "exclude_special_tokens seqpos_slice neuronpedia_id sae_lens_version sae_lens_training_version hf_hook_name",
    "hf_hook_name_out hf_repo_id hf_revision release sae_id tokenizer_name split data_files data_dir column_name",
    "from_pretrained_path disable_concat_sequences sequence_separator_token begin_sequence_token begin_batch_token",
    "expansion_factor b_dec_init_method normalize_sae_decoder noise_scale init_encoder_as_decoder_transpose",
    "decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm lp_norm",
    "l1_coefficient l1_warm_up_steps l1_warmup_steps l0_coefficient l0_warm_up_steps mse_loss_normalization",
    "scale_sparsity_penalty_by_decoder_norm use_ghost_grads k_aux aux_loss_coefficient pre_act_loss_coefficient",
    "jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale topk_threshold_lr",
    "matryoshka_widths use_sparse_activations feature_sampling_method feature_sampling_window resample_batches",
    "feature_reinit_scale dead_feature_window dead_feature_threshold dead_feature_estimation_method",
    "adam_beta1 adam_beta2 lr lr_end lr_scheduler_name lr_warm_up_steps lr_decay_steps n_restart_cycles seed",
    "training_tokens total_training_tokens total_training_steps finetuning_tokens finetuning_method",
    "train_batch_size train_batch_size_tokens tokens_per_buffer n_batches_in_buffer store_batch_size",
    "store_batch_size_prompts eval_batch_size_prompts n_eval_batches n_eval_seqs eval_every_n_wandb_logs",
    "use_cached_activations cached_activations_path new_cached_activations_path act_store_device",
    "activations_mixing_fraction autocast autocast_lm compile_llm compile_sae llm_compilation_mode",
    "sae_compilation_mode llm_device n_checkpoints checkpoint_path save_final_checkpoint save_timeseries output_path",
    "resume resume_from_checkpoint log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb",
    "wandb_project wandb_id wandb_entity wandb_log_frequency run_name verbose logger n_training_steps",
    "n_training_samples",
)

# eai-sparsify's SparseCoderConfig
SPARSIFY = _words(
    "activation d_in expansion_factor k multi_topk normalize_decoder num_latents signed skip_connection transcode",
)

# Gemma Scope 2's config.json
GEMMA_SCOPE = _words(
    "architecture model_name hf_hook_point_in hf_hook_point_out affine_connection type",
    "width l0 layer site release version description d_in d_model d_sae dtype",
)

# the SAEConfig of Language-Model-SAEs as of Llama Scope
LLAMA_SCOPE = _words(
    "hook_point_in hook_point_out use_decoder_bias apply_decoder_bias_to_pre_encoder norm_activation",
    "dataset_average_activation_norm sparsity_include_decoder_norm use_glu_encoder act_fn jump_relu_threshold top_k",
    "d_model d_sae",
    "sae_pretrained_name_or_path strict_loading expansion_factor bias_init_method decoder_exactly_fixed_norm",
    "decoder_exactly_unit_norm init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose lp",
    "l1_coefficient l1_coefficient_warmup_steps initial_k k_warmup_steps use_batch_norm_mse use_ghost_grads",
    "tp_size ddp_size dtype device seed exp_name exp_series exp_result_path sparsity_threshold_for_csr",
)

# the configurations of dictionary_learning's trainers
DICTIONARY_LEARNING = _words(
    "dict_class layer submodule_name lm_name k activation_dim dict_size group_sizes",
    "trainer_class adaptive_sparsity_penalty anneal_start anneal_end auxk_alpha bandwidth d_submodule decay_start",
    "device group_fractions group_weights weights_temperature initial_sparsity_penalty l1_penalty lambda",
    "lambda_warm_steps lr max_l2_loss min_l2_loss n_sparsity_updates next_p p p_start p_end resample_steps seed",
    "sparsity_coeff sparsity_coefficient sparsity_function sparsity_loss_queue_length sparsity_penalty",
    "sparsity_queue_length sparsity_warmup_steps steps steps_before_annealing target_l0 threshold_beta",
    "threshold_start_step top_k_aux wandb_name warmup_steps activation_queue_length",
)
