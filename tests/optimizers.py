"""Every public optimizer and wrapper of optax: how it is built with a traced rate and a second number.

`BUILD` and `CONTRIB` map a name to a function (lr, b) -> transformation; `b` lies near 0.9 and is a momentum or
the like, where there is one. `REFUSED` are those that cannot train as a problem does, with a pattern of the
error. `OTHERS` are public names that build none. Together they are all that optax offers.
"""

import jax
import jax.numpy as jnp
import optax
from optax import contrib


def _step(transformation):
    """Make an optimizer of a factory of one that only scales: steps against it, at the rate."""
    return lambda lr, b: optax.chain(transformation(b), optax.scale_by_learning_rate(lr))


def _before(transformation):
    """Make an optimizer of a factory of one that changes gradients: steps of momentum follow."""
    return lambda lr, b: optax.chain(transformation(b), optax.sgd(lr, b))


def _first(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([i == 0 for i in range(len(leaves))])


def _labels(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(["a" if i == 0 else "b" for i in range(len(leaves))])


def _either(lr, b):
    return {"a": optax.adam(lr, b), "b": optax.sgd(lr)}


LEAVES = ("bias", "parabola", "rosenbrock", "saturated", "v", "w")
"""Names of the params of tests/test_optimizers.py."""

BUILD = {
    "adabelief": lambda lr, b: optax.adabelief(lr, b),
    "adadelta": lambda lr, b: optax.adadelta(lr, b),
    "adafactor": lambda lr, b: optax.adafactor(
        lr,
        min_dim_size_to_factor=2,
        momentum=b,
        multiply_by_parameter_scale=False,
        dtype_momentum=jnp.result_type(float),
    ),
    "adagrad": lambda lr, b: optax.adagrad(lr),
    "adam": lambda lr, b: optax.adam(lr, b),
    "adamax": lambda lr, b: optax.adamax(lr, b),
    "adamaxw": lambda lr, b: optax.adamaxw(lr, b),
    "adamw": lambda lr, b: optax.adamw(lr, b),
    "adan": lambda lr, b: optax.adan(lr, b),
    "adaptive_grad_clip": _before(lambda b: optax.adaptive_grad_clip(b)),
    "add_decayed_weights": _before(lambda b: optax.add_decayed_weights(b)),
    "add_noise": _before(lambda b: optax.add_noise(b, 0.5, jax.random.key(0))),
    "amsgrad": lambda lr, b: optax.amsgrad(lr, b),
    "apply_every": _before(lambda b: optax.apply_every(2)),
    "apply_if_finite": lambda lr, b: optax.apply_if_finite(optax.adam(lr, b), 3),
    "centralize": _before(lambda b: optax.centralize()),
    "chain": lambda lr, b: optax.chain(optax.trace(b), optax.scale_by_learning_rate(lr)),
    "clip": _before(lambda b: optax.clip(10 * b)),
    "clip_by_block_rms": _before(lambda b: optax.clip_by_block_rms(b)),
    "clip_by_global_norm": _before(lambda b: optax.clip_by_global_norm(b)),
    "conditionally_mask": lambda lr, b: optax.conditionally_mask(
        optax.sgd(lr, b), lambda step: step % 2 == 0
    ),
    "conditionally_transform": _step(
        lambda b: optax.conditionally_transform(optax.trace(b), lambda step: step % 2 == 0)
    ),
    "ema": _step(lambda b: optax.ema(b)),
    "flatten": lambda lr, b: optax.flatten(optax.adam(lr, b)),
    "freeze": lambda lr, b: optax.chain(optax.sgd(lr, b), optax.freeze(_first)),
    "fromage": lambda lr, b: optax.fromage(lr),
    "identity": lambda lr, b: optax.chain(optax.identity(), optax.sgd(lr, b)),
    "inject_hyperparams": lambda lr, b: optax.inject_hyperparams(optax.adam)(lr, b1=b),
    "inject_stateful_hyperparams": lambda lr, b: optax.inject_stateful_hyperparams(optax.adam)(
        lr, b1=b
    ),
    "keep_params_nonnegative": lambda lr, b: optax.chain(
        optax.sgd(lr, b), optax.keep_params_nonnegative()
    ),
    "lamb": lambda lr, b: optax.lamb(lr, b),
    "lars": lambda lr, b: optax.lars(lr, momentum=b),
    "lbfgs": lambda lr, b: optax.lbfgs(lr, linesearch=None),
    "lion": lambda lr, b: optax.lion(lr, b),
    "masked": lambda lr, b: optax.chain(optax.sgd(lr), optax.masked(optax.trace(b), _first)),
    "measure_with_ema": lambda lr, b: optax.chain(
        optax.sgd(lr, b), optax.measure_with_ema(lambda updates: updates, 0.9)
    ),
    "multi_transform": lambda lr, b: optax.multi_transform(_either(lr, b), _labels),
    "nadam": lambda lr, b: optax.nadam(lr, b),
    "nadamw": lambda lr, b: optax.nadamw(lr, b),
    "named_chain": lambda lr, b: optax.named_chain(
        ("trace", optax.trace(b)), ("rate", optax.scale_by_learning_rate(lr))
    ),
    "noisy_sgd": lambda lr, b: optax.noisy_sgd(lr, 0.01, b, jax.random.key(0)),
    "normalize_by_update_norm": _before(lambda b: optax.normalize_by_update_norm(b)),
    "novograd": lambda lr, b: optax.novograd(lr, b),
    "optimistic_adam": lambda lr, b: optax.optimistic_adam(lr, b),
    "optimistic_adam_v2": lambda lr, b: optax.optimistic_adam_v2(lr, b1=b),
    "optimistic_gradient_descent": lambda lr, b: optax.optimistic_gradient_descent(lr, b),
    "partition": lambda lr, b: optax.partition(_either(lr, b), _labels),
    "polyak_sgd": lambda lr, b: optax.polyak_sgd(max_learning_rate=1.0, scaling=30 * lr),
    "radam": lambda lr, b: optax.radam(lr, b),
    "rmsprop": lambda lr, b: optax.rmsprop(lr, b),
    "rprop": lambda lr, b: optax.rprop(lr),
    "scale": _before(lambda b: optax.scale(b)),
    "scale_by_adadelta": _step(lambda b: optax.scale_by_adadelta(b)),
    "scale_by_adam": _step(lambda b: optax.scale_by_adam(b)),
    "scale_by_adamax": _step(lambda b: optax.scale_by_adamax(b)),
    "scale_by_adan": _step(lambda b: optax.scale_by_adan(b)),
    "scale_by_amsgrad": _step(lambda b: optax.scale_by_amsgrad(b)),
    "scale_by_belief": _step(lambda b: optax.scale_by_belief(b)),
    "scale_by_distance_over_gradients": _step(lambda b: optax.scale_by_distance_over_gradients()),
    "scale_by_factored_rms": _step(lambda b: optax.scale_by_factored_rms()),
    "scale_by_lbfgs": _step(lambda b: optax.scale_by_lbfgs()),
    "scale_by_learning_rate": lambda lr, b: optax.scale_by_learning_rate(lr),
    "scale_by_lion": _step(lambda b: optax.scale_by_lion(b)),
    "scale_by_novograd": _step(lambda b: optax.scale_by_novograd(b)),
    "scale_by_optimistic_gradient": _step(lambda b: optax.scale_by_optimistic_gradient(b)),
    "scale_by_param_block_norm": _step(lambda b: optax.scale_by_param_block_norm()),
    "scale_by_param_block_rms": _step(lambda b: optax.scale_by_param_block_rms()),
    "scale_by_polyak": lambda lr, b: optax.chain(optax.sgd(30 * lr), optax.scale_by_polyak(1.0)),
    "scale_by_radam": _step(lambda b: optax.scale_by_radam(b)),
    "scale_by_rms": _step(lambda b: optax.scale_by_rms(b)),
    "scale_by_rprop": lambda lr, b: optax.chain(
        optax.scale_by_rprop(lr), optax.scale_by_learning_rate(1.0)
    ),
    "scale_by_rss": _step(lambda b: optax.scale_by_rss()),
    "scale_by_schedule": lambda lr, b: optax.scale_by_schedule(lambda step: -lr * b**step),
    "scale_by_sign": _step(lambda b: optax.scale_by_sign()),
    "scale_by_sm3": _step(lambda b: optax.scale_by_sm3(b)),
    "scale_by_stddev": _step(lambda b: optax.scale_by_stddev(b)),
    "scale_by_trust_ratio": lambda lr, b: optax.chain(
        optax.sgd(lr, b), optax.scale_by_trust_ratio(trust_coefficient=0.01)
    ),
    "scale_by_yogi": _step(lambda b: optax.scale_by_yogi(b)),
    "selective_transform": lambda lr, b: optax.selective_transform(
        optax.sgd(lr, b),
        freeze_mask={n: n == "bias" for n in LEAVES},
    ),
    "set_to_zero": lambda lr, b: optax.partition(
        {"a": optax.set_to_zero(), "b": optax.sgd(lr, b)}, _labels
    ),
    "sgd": lambda lr, b: optax.sgd(lr, b),
    "sign_sgd": lambda lr, b: optax.sign_sgd(lr),
    "signum": lambda lr, b: optax.signum(lr, b),
    "sm3": lambda lr, b: optax.sm3(lr, b),
    "snapshot": lambda lr, b: optax.chain(
        optax.snapshot("kept", optax.global_norm), optax.sgd(lr, b)
    ),
    "stateless": lambda lr, b: optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: -lr * u, updates)
    ),
    "stateless_with_tree_map": lambda lr, b: optax.stateless_with_tree_map(lambda u, p: -lr * u),
    "trace": _step(lambda b: optax.trace(b)),
    "with_extra_args_support": lambda lr, b: optax.with_extra_args_support(optax.sgd(lr, b)),
    "yogi": lambda lr, b: optax.yogi(lr, b),
    "zero_nans": lambda lr, b: optax.chain(optax.zero_nans(), optax.sgd(lr, b)),
    "MultiSteps": lambda lr, b: optax.MultiSteps(optax.adam(lr, b), 2).gradient_transformation(),
}

CONTRIB = {
    "acprop": lambda lr, b: contrib.acprop(lr, b),
    "ademamix": lambda lr, b: contrib.ademamix(lr, b),
    "adopt": lambda lr, b: contrib.adopt(lr, b),
    "cocob": lambda lr, b: contrib.cocob(10 * lr),
    "dadapt_adamw": lambda lr, b: contrib.dadapt_adamw(100 * lr),
    "dog": lambda lr, b: contrib.dog(100 * lr),
    "dowg": lambda lr, b: contrib.dowg(100 * lr),
    "galore": lambda lr, b: contrib.galore(lr, rank=2),
    "madgrad": lambda lr, b: contrib.madgrad(lr, b),
    "mechanize": lambda lr, b: contrib.mechanize(optax.sgd(lr, b)),
    "momo": lambda lr, b: contrib.momo(lr, b),
    "momo_adam": lambda lr, b: contrib.momo_adam(lr, b),
    "muon": lambda lr, b: contrib.muon(lr, beta=b),
    "normalize": lambda lr, b: optax.chain(contrib.normalize(), optax.sgd(lr, b)),
    "prodigy": lambda lr, b: contrib.prodigy(100 * lr),
    "reduce_on_plateau": lambda lr, b: optax.chain(
        optax.sgd(lr, b), contrib.reduce_on_plateau(patience=2)
    ),
    "sam": lambda lr, b: contrib.sam(
        optax.sgd(lr, b),
        optax.chain(contrib.normalize(), optax.sgd(0.01)),
        sync_period=2,
        opaque_mode=True,
    ),
    "scale_by_acprop": _step(lambda b: contrib.scale_by_acprop(b)),
    "scale_by_ademamix": _step(lambda b: contrib.scale_by_ademamix(b)),
    "scale_by_adopt": _step(lambda b: contrib.scale_by_adopt(b)),
    "scale_by_cocob": lambda lr, b: contrib.scale_by_cocob(10 * lr),
    "scale_by_galore": lambda lr, b: optax.chain(
        contrib.scale_by_galore(rank=2), optax.scale_by_learning_rate(lr)
    ),
    "scale_by_madgrad": lambda lr, b: contrib.scale_by_madgrad(lr, b, 1e-6),
    "scale_by_simplified_ademamix": _step(lambda b: contrib.scale_by_simplified_ademamix(b)),
    "schedule_free": lambda lr, b: contrib.schedule_free(optax.rmsprop(lr, 0.9), lr, b),
    "schedule_free_adamw": lambda lr, b: contrib.schedule_free_adamw(lr, b1=b, warmup_steps=2),
    "schedule_free_sgd": lambda lr, b: contrib.schedule_free_sgd(lr, b1=b),
    "simplified_ademamix": lambda lr, b: contrib.simplified_ademamix(lr, b),
    "sophia": lambda lr, b: contrib.sophia(lr, b),
    "split_real_and_imaginary": lambda lr, b: contrib.split_real_and_imaginary(optax.adam(lr, b)),
}

REFUSED = {
    # two sets of weights, which problem.init would have to make
    "lookahead": (lambda lr, b: optax.lookahead(optax.sgd(lr), 3, 0.5), "LookaheadParams"),
    # a loop of unknown length: the estimator `forward` differentiates it
    "scale_by_backtracking_linesearch": (
        lambda lr, b: optax.chain(optax.sgd(lr), optax.scale_by_backtracking_linesearch(5)),
        "forward",
    ),
    "scale_by_zoom_linesearch": (
        lambda lr, b: optax.chain(optax.sgd(lr), optax.scale_by_zoom_linesearch(5)),
        "forward",
    ),
    # what it measures is no part of its first state
    "monitor": (
        lambda lr, b: optax.chain(optax.sgd(lr), optax.monitor({"norm": optax.global_norm})),
        r"problem\.optimizer",
    ),
    # one gradient for each example
    "dpsgd": (lambda lr, b: contrib.dpsgd(lr, 1.0, 0.1, 0), "batch"),
    "differentially_private_aggregate": (
        lambda lr, b: contrib.differentially_private_aggregate(1.0, 0.1, 0),
        "batch",
    ),
}
"""Those that a problem cannot train with: how they are built, and what the error says."""

WITHIN = {"scale_by_muon"}
"""Compared as a part of `muon`, which hands it the matrices alone."""

ALONE = {"hutchinson_estimator_diag_hessian"}
"""Estimates a curvature for Sophia; what it returns are no updates."""

OTHERS = """
    apply_updates bias_correction constant_schedule convex_kl_divergence cosine_decay_schedule cosine_distance
    cosine_onecycle_schedule cosine_similarity ctc_loss ctc_loss_with_forward_probs exponential_decay
    generalized_kl_divergence global_norm hinge_loss huber_loss incremental_update init_empty_state
    join_schedules kl_divergence l2_loss linear_onecycle_schedule linear_schedule log_cosh
    matrix_inverse_pth_root microbatch multi_normal nnls ntxent per_example_global_norm_clip
    per_example_layer_norm_clip periodic_update piecewise_constant_schedule piecewise_interpolate_schedule
    polynomial_schedule power_iteration safe_increment safe_int32_increment safe_norm
    safe_root_mean_squares safe_softmax_cross_entropy scale_gradient schedule_free_eval_params sgdr_schedule
    sigmoid_binary_cross_entropy sigmoid_focal_loss skip_large_updates skip_not_finite smooth_labels
    softmax_cross_entropy softmax_cross_entropy_with_integer_labels squared_error tree_map_params
    update_infinity_moment update_moment update_moment_per_elem_norm value_and_grad_from_state
    warmup_constant_schedule warmup_cosine_decay_schedule warmup_exponential_decay_schedule
""".split()  # noqa: SIM905
"""Public functions that are no transformations: losses, schedules, helpers."""
