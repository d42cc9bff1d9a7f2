"""What is broken, the tests that should notice, and what is no mistake to change."""

from __future__ import annotations

P, H = "plugins/prunebench_plugins", "harness/prunebench"
OPTIONS = "tests/plugins/test_options.py"
LINEAR = ("tests/plugins/test_linear_methods.py", OPTIONS)
PRUNER = ("tests/plugins/test_llm_pruner_scores.py", "tests/plugins/test_llm_pruner.py")
BESA = ("tests/plugins/test_besa.py",)
BUDGET = ("tests/plugins/test_budget_search.py",)
BLOCKS = ("tests/plugins/test_blockpruner.py", "tests/plugins/test_variants_together.py")
APPLY = ("tests/plugins/test_apply.py",)
WALK = ("tests/layerwise/test_walk.py",)
TRAINING = ("tests/training/test_loop.py", "tests/training/test_optimiser.py")
TARGETS: dict[str, tuple[str, ...]] = {
    # Methods
    f"{P}/dense.py": LINEAR,
    f"{P}/random.py": LINEAR,
    f"{P}/magnitude.py": ("tests/plugins/test_magnitude.py", *LINEAR),
    f"{P}/wanda.py": LINEAR,
    f"{P}/sparsegpt.py": ("tests/plugins/test_sparsegpt.py", OPTIONS),
    f"{P}/sparsegpt_kernel.py": (
        "tests/plugins/test_sparsegpt_kernel.py", "tests/plugins/test_host_waits.py",
    ),
    f"{P}/ria.py": ("tests/plugins/test_ria.py", OPTIONS),
    f"{P}/ria_permutation.py": ("tests/plugins/test_ria.py",),
    f"{P}/dsnot.py": ("tests/plugins/test_dsnot.py", OPTIONS),
    f"{P}/dsnot_refine.py": ("tests/plugins/test_dsnot.py",),
    f"{P}/flap.py": ("tests/plugins/test_flap.py", OPTIONS),
    f"{P}/flap_choice.py": ("tests/plugins/test_flap.py",),
    f"{P}/flap_inputs.py": ("tests/plugins/test_flap.py",),
    f"{P}/flap_scores.py": ("tests/plugins/test_flap.py",),
    f"{P}/hywia.py": ("tests/plugins/test_hywia.py", OPTIONS),
    f"{P}/hywia_fusion.py": ("tests/plugins/test_hywia.py",),
    f"{P}/shortgpt.py": ("tests/plugins/test_shortgpt.py", OPTIONS),
    f"{P}/layer_spans.py": ("tests/plugins/test_llm_streamline.py", "tests/plugins/test_shortgpt.py"),
    f"{P}/llm_streamline.py": ("tests/plugins/test_llm_streamline.py", OPTIONS),
    f"{P}/streamline.py": ("tests/plugins/test_streamline.py", OPTIONS),
    f"{P}/streamline_training.py": ("tests/plugins/test_streamline.py",),
    f"{P}/stability.py": ("tests/plugins/test_stability.py", OPTIONS),
    f"{P}/blockpruner.py": (*BLOCKS, OPTIONS),
    f"{P}/removal_search.py": (*BLOCKS, "tests/plugins/test_sleb.py"),
    f"{P}/depth_options.py": ("tests/plugins/test_sleb.py", OPTIONS),
    f"{P}/depth_scores.py": ("tests/plugins/test_shortened_llama.py",),
    f"{P}/shortened_llama.py": ("tests/plugins/test_shortened_llama.py", OPTIONS),
    f"{P}/sleb.py": ("tests/plugins/test_sleb.py", OPTIONS),
    f"{P}/laco.py": ("tests/plugins/test_laco.py", OPTIONS),
    f"{P}/laco_merges.py": ("tests/plugins/test_laco.py",),
    f"{P}/layer_similarity.py": ("tests/plugins/test_layer_similarity.py", OPTIONS),
    f"{P}/llm_pruner.py": (PRUNER[1], OPTIONS),
    f"{P}/llm_pruner_groups.py": (PRUNER[1],),
    f"{P}/llm_pruner_scores.py": PRUNER,
    f"{P}/besa.py": (*BESA, OPTIONS),
    f"{P}/besa_optimiser.py": BESA,
    f"{P}/besa_ranking.py": BESA,
    f"{P}/besa_scores.py": BESA,
    f"{P}/besa_training.py": BESA,
    f"{P}/besa_units.py": BESA,
    f"{P}/disp_llm.py": ("tests/plugins/test_disp_llm.py", OPTIONS),
    f"{P}/disp_llm_budget.py": ("tests/plugins/test_disp_llm.py",),
    f"{P}/disp_llm_training.py": ("tests/plugins/test_disp_llm.py",),
    f"{P}/removal_ranking.py": (
        "tests/plugins/test_removal_ranking.py", "tests/plugins/test_variants_together.py",
    ),
    f"{P}/slicegpt.py": ("tests/plugins/test_slicegpt.py", OPTIONS),
    f"{P}/reap.py": ("tests/plugins/test_reap.py", OPTIONS),
    f"{P}/minitron.py": ("tests/plugins/test_minitron.py", OPTIONS),
    f"{P}/minitron_importance.py": ("tests/plugins/test_minitron.py",),
    f"{P}/minitron_widths.py": ("tests/plugins/test_minitron.py",),
    f"{P}/budget_search.py": (*BUDGET, OPTIONS),
    f"{P}/budget_knapsack.py": BUDGET,
    f"{P}/budget_quality.py": BUDGET,
    f"{P}/budget_latency.py": BUDGET,
    f"{P}/budget_report.py": BUDGET,
    f"{P}/budget_sizes.py": BUDGET,
    f"{P}/budget_variants.py": BUDGET,
    f"{P}/imp.py": ("tests/plugins/test_imp.py", OPTIONS),
    f"{P}/apply.py": APPLY,
    f"{P}/apply_units.py": APPLY,
    # Allocations, recoveries and metrics
    f"{P}/owl.py": ("tests/plugins/test_owl.py", OPTIONS),
    f"{P}/alphapruning.py": ("tests/plugins/test_alphapruning.py", OPTIONS),
    f"{P}/alphapruning_fit.py": ("tests/plugins/test_alphapruning.py",),
    f"{P}/divided_sparsity.py": ("tests/plugins/test_alphapruning.py",),
    f"{P}/ecoflap.py": ("tests/plugins/test_ecoflap.py", OPTIONS),
    f"{P}/ecoflap_budget.py": ("tests/plugins/test_ecoflap.py",),
    f"{P}/ecoflap_scores.py": ("tests/plugins/test_ecoflap.py",),
    f"{P}/lora.py": ("tests/plugins/test_lora.py", OPTIONS),
    f"{P}/finetune.py": ("tests/plugins/test_finetune.py", OPTIONS),
    f"{P}/distill.py": ("tests/plugins/test_distill.py", OPTIONS),
    f"{P}/distill_objective.py": ("tests/plugins/test_distill.py",),
    f"{P}/kl_divergence.py": ("tests/plugins/test_kl_divergence.py", OPTIONS),
    f"{P}/arithmetic_copy.py": ("tests/plugins/test_arithmetic_copy.py", OPTIONS),
    f"{P}/generation_health.py": ("tests/plugins/test_generation_health.py", OPTIONS),
    f"{P}/draft_acceptance.py": (
        "tests/plugins/test_draft_acceptance.py", "tests/plugins/test_draft_speedup.py", OPTIONS,
    ),
    # What methods are made of
    f"{H}/plugin/api/sparsity.py": ("tests/plugin/api/test_sparsity.py",),
    f"{H}/plugin/api/allocation.py": ("tests/plugins/test_owl.py", OPTIONS),
    f"{H}/plugin/api/method.py": ("tests/plugin/api/test_sparsity.py", LINEAR[0], *WALK),
    f"{H}/model/surgery.py": ("tests/model/test_surgery.py", "tests/model/test_surgery_blocks.py"),
    f"{H}/model/width.py": ("tests/model/test_width.py",),
    f"{H}/layerwise/masks.py": (
        "tests/layerwise/test_masks.py", "tests/plugins/test_magnitude.py", LINEAR[0],
    ),
    f"{H}/layerwise/statistics.py": ("tests/layerwise/test_statistics.py", *WALK),
    f"{H}/layerwise/capture.py": WALK,
    f"{H}/layerwise/layer_run.py": WALK,
    f"{H}/layerwise/walk.py": WALK,
    f"{H}/layerwise/partial_forward.py": ("tests/layerwise/test_partial_forward.py", *BLOCKS),
    f"{H}/training/loop.py": (*TRAINING, "tests/training/test_validation.py"),
    f"{H}/training/loss.py": ("tests/training/test_windows.py", "tests/training/test_half_precision.py", *TRAINING),
    f"{H}/training/optimiser.py": TRAINING[::-1],
    f"{H}/training/scaling.py": ("tests/training/test_half_precision.py",),
    f"{H}/training/settings.py": ("tests/training/test_settings.py", "tests/training/test_validation.py"),
    f"{H}/training/validation.py": ("tests/training/test_validation.py",),
    f"{H}/training/windows.py": ("tests/training/test_windows.py",),
    # Samplers and protocols
    f"{H}/text/samplers.py": (
        "tests/text/test_known_draws.py", "tests/text/test_samplers.py", "tests/text/test_windows.py",
    ),
    f"{H}/measure/quality/perplexity.py": ("tests/measure/quality/test_perplexity.py",),
    f"{H}/measure/quality/split_model.py": (
        "tests/measure/quality/test_perplexity.py", "tests/measure/quality/test_tree_scoring.py",
    ),
    f"{H}/measure/quality/token_trees.py": ("tests/measure/quality/test_token_trees.py",),
    f"{H}/measure/quality/tree_scoring.py": ("tests/measure/quality/test_tree_scoring.py",),
    f"{H}/measure/quality/protocols.py": ("tests/measure/quality/test_protocols.py",),
    f"{H}/measure/speed/intervals.py": ("tests/measure/speed/test_intervals.py",),
    f"{H}/measure/speed/latency.py": ("tests/measure/speed/test_latency.py", "tests/measure/speed/test_rounds.py"),
    f"{H}/measure/speed/rounds.py": ("tests/measure/speed/test_rounds.py", "tests/measure/speed/test_latency.py"),
}  # fmt: skip

SPEED_ONLY: dict[str, dict[str, str]] = {
    f"{P}/sparsegpt.py": {
        "STRIDE": "columns between two matrix products",
        "PANEL": "columns of the factor and its inverse that are computed together, at least",
        "PANELS": "parts that a wide one is computed in",
        "TURNED": "columns that are transposed together",
    },
    f"{P}/kl_divergence.py": {
        "CACHE_BYTES": "logits that are compared while they are in the cache"
    },
    f"{P}/sparsegpt_kernel.py": {"STRIDE": "columns of one kernel"},
    f"{P}/removal_search.py": {
        "PENDING": "variants whose exact loss is put off",
        "FIRST_GUESS": "the unit that a search looks at first",
    },
    f"{P}/llm_pruner_scores.py": {
        "BATCH_TOKENS": "tokens of one pass",
        "BATCH_TOKENS_ELSEWHERE": "the same on other devices",
        "CHUNK": "weights that are scored at once",
    },
    f"{P}/llm_pruner_groups.py": {"BISECTIONS": "halvings; the last ones change no count"},
    f"{H}/layerwise/masks.py": {"_SMALL_GROUP": "which of two ways ranks a group"},
    f"{H}/layerwise/statistics.py": {
        "PANEL": "rows of one matrix product",
        "WIDE_PANEL": "the same in bfloat16",
        "NUMPY_THREADS": "threads up to which numpy adds up columns",
        "NUMPY_ROWS": "tokens that numpy adds up at once",
    },
    f"{H}/layerwise/partial_forward.py": {
        "LOGITS_AT_ONCE": "logits in memory",
        "LOGITS_ELSEWHERE": "the same on other devices",
        "SUBSET": "tokens that a bound computes exactly: it is closer or cheaper, and never above",
        "SUBSETS_THAT_PAY": "whether there is a bound at all",
    },
    f"{P}/distill_objective.py": {"LOGITS_BYTES": "logits in memory"},
    f"{H}/training/loss.py": {"LOGITS_BYTES": "logits in memory"},
    f"{H}/text/samplers.py": {
        "_CHARACTERS_PER_TOKEN": "how much text is tokenised at first",
        "_SPARE": "how much more if that was too little",
    },
    f"{H}/measure/quality/split_model.py": {"LOGITS_BYTES": "logits in memory"},
    f"{H}/measure/quality/perplexity.py": {
        "CACHE_BYTES": "exponentials that are summed while they are in the cache",
        "LEAST_SUM": "sums of exponentials that are computed again with the maximum",
        "PROBE_TOKENS": "tokens of the pass that finds out whether a model can be split",
    },
}
"""Constants that decide how long a computation takes, and change no result.

`test_speed_only.py` shows that, for every one of them.
"""
