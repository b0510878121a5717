"""SGD with momentum inside a user's optimizer: found, checked, and taken apart so that steps can be undone.

One step of it is, for every leaf of the weights,

    v ← m v + G(g, w),   w ← D w − η v,

with a momentum m, a rate η and a decay D that may depend on the step, the leaf and the hyperparameters, and
any stateless G (clipping, an L2 term). The state (w, v) after a step gives w before it, then g and G, then v.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.abstract import abstract
from hypergrad.core.autodiff import uses
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.problem import Problem
from hypergrad.train import TrainState, carried, step_and_grads, trained, with_parts

MOMENTUM_SPAN = "the smallest momentum of the run"
"""Description of `min_momentum` in `drift` and `reversible`."""


class NotMomentum(ValueError):
    """The optimizer is not SGD with momentum.

    Args:
        got: Words for what it does or has instead, after "problem.optimizer".
        expected: Words for what SGD with momentum does or has there.
    """

    def __init__(self, got: str, expected: str = "SGD with momentum"):
        super().__init__(
            f"problem.optimizer {got}, expected {expected}; use optax.sgd(rate, momentum=...) without "
            "nesterov, or estimators.reverse for any optimizer"
        )


class Coefficients(NamedTuple):
    """The numbers of one step for each leaf of the weights `[L]`, or of all steps `[T, L]`.

    Attributes:
        momenta: Momenta m.
        rates: Rates η.
        decays: Decays D − 1, exactly 0 without decoupled decay; None where updates do not read the weights.
    """

    momenta: Array
    rates: Array
    decays: Array | None


class Course(NamedTuple):
    """The part of a run's states that depends on no gradient, and is known before the run starts.

    Attributes:
        step: Index of each step `[T]`.
        fixed: Counters and keys in the optimizer's state before each step, leading axis `[T]`.
        coefficients: Coefficients of each step `[T, L]`; None where all steps have the same.
    """

    step: Array
    fixed: list[Array]
    coefficients: Coefficients | None


class Recursion:
    """The momentum recursion in `problem.optimizer`, found by asking the optimizer itself.

    The optimizer updates weights of one entry per leaf. Its answers to a unit gradient, a unit velocity and a
    unit weight are the coefficients. A test with numbers, before anything else compiles, shows whether other
    updates follow from them. It sets every hyperparameter to 0.5 and takes random entries of three sizes at up
    to 66 steps from the first to the last, and one update of weights of the real shapes.

    **Cost:** once a trace, one compiled program: some 200 updates of one number per leaf, and one update of
    the weights.

    **Limits:** the test does not see an optimizer that differs only at other steps, or only at other
    hyperparameters.

    Attributes:
        decays: Whether a step may have a decoupled decay, because updates read the weights.
        scheduled: Whether the coefficients change from step to step.
        constant: Smallest momentum, where no hyperparameter or schedule changes any momentum; else None.

    Args:
        problem: Training loop.
        hparams: Hyperparameters, traced or not.
        state: State before the first step.
        num_steps: Length of the run.

    Raises:
        NotMomentum: for an optimizer that is not this recursion.
        ValueError: for a recursion that cannot be undone: a constant momentum of 0, or of 1 and more, a
            velocity in another dtype than its weights, or rates or momenta of several numbers per leaf.
    """

    def __init__(self, problem: Problem, hparams: HParams, state: TrainState, num_steps: int):
        self.problem, self.start, self.num_steps = problem, state, num_steps
        weights = trained(state.params)
        self.names = tree.leaf_names(weights, bare="params")
        self.leaves, self.treedef = jax.tree.flatten(weights)
        self.places = self._find_velocity(hparams)
        self.decays, self.scheduled = True, True  # the measurement allows for both
        errors, momenta = self._measure(hparams)
        worst = int(np.argmax(errors))
        if errors[worst] > 1e-4:
            raise NotMomentum(
                f"departs from v ← m v + G(g, w), w ← D w − rate v by {errors[worst]:.0e} on "
                f"params[{self.names[worst]!r}]"
            )
        moving = self._classify(hparams)
        self.constant = None if moving else float(momenta[0].min())
        bad = ~((momenta[0] > 0) & (momenta[0] < 1))
        if not moving and np.any(bad):
            raise ValueError(
                f"the momentum of problem.optimizer is {momenta[0][bad][0]:.3g}, expected a number above 0 and "
                "below 1, because a step is undone by dividing by it; use estimators.reverse"
            )

    def split(self, opt_state: PyTree) -> tuple[list[Array], list[Array]]:
        """Split an optimizer state into the velocity of each leaf of the weights, and the rest."""
        leaves = jax.tree.leaves(opt_state)
        position = {i: k for k, i in enumerate(self.places) if i is not None}
        velocity = [leaves[position[i]] for i in range(len(self.leaves))]
        return velocity, [x for x, i in zip(leaves, self.places, strict=True) if i is None]

    def join(self, velocity: Sequence[Array], fixed: Sequence[Array]) -> PyTree:
        """Make an optimizer state from the parts that `split` returns."""
        rest = iter(fixed)
        leaves = [next(rest) if i is None else velocity[i] for i in self.places]
        return jax.tree.unflatten(jax.tree.structure(self.start.opt_state), leaves)

    def coefficients(self, hparams: HParams, fixed: list[Array]) -> Coefficients:
        """Read the numbers of the step whose counters are `fixed` off the optimizer."""
        one, zero = np.ones(len(self.leaves)), np.zeros(len(self.leaves))
        updates, velocity, _ = self._respond(hparams, fixed, one, zero, zero)
        rates = -updates / velocity
        _, momenta, _ = self._respond(hparams, fixed, zero, one, zero)
        if not self.decays:
            return Coefficients(momenta, rates, None)
        updates, velocity, _ = self._respond(hparams, fixed, zero, zero, one)
        decays = updates + rates * velocity
        # an L2 term within G makes u = −η v up to rounding, which is not a decay
        decays = jnp.where(jnp.abs(decays) > 1e-5 * jnp.abs(updates), decays, 0)
        return Coefficients(momenta, rates, decays)

    def course(self, hparams: HParams, num_steps: int) -> tuple[Course, Coefficients, list[Array]]:
        """Run through the counters and coefficients of a run without its gradients.

        Returns:
            The course, the coefficients of the first step, and the counters after the last one.
        """
        fixed = self.split(self.start.opt_state)[1]
        last, history = self._count(hparams, fixed, num_steps)
        steps = self.start.step + jnp.arange(num_steps, dtype=self.start.step.dtype)
        first, every = self.coefficients(hparams, fixed), None
        if self.scheduled:
            every = jax.vmap(lambda fixed: self.coefficients(hparams, fixed))(history)
        return Course(steps, history, every), first, last

    def _count(self, hparams: HParams, fixed: list[Array], num_steps: int) -> tuple[list, list]:
        """Return the counters after a number of steps, and those before each of them `[T]`."""
        zero = np.zeros(len(self.leaves))

        def advance(fixed: list[Array], _: None) -> tuple[list[Array], list[Array]]:
            after = self._respond(hparams, fixed, zero, zero, zero)[2]
            return tree.cast_like(after, fixed), fixed

        return jax.lax.scan(advance, fixed, None, length=num_steps)

    def state(
        self, at: Course, loss_state: PyTree, weights: list[Array], velocity: list[Array]
    ) -> TrainState:
        """Make the state before a step from its part of the course, weights and velocity."""
        params = with_parts(self.start.params, self.treedef.unflatten(weights), loss_state)
        return TrainState(at.step, params, self.join(velocity, at.fixed), self.start.key)

    def drive(
        self, hparams: HParams, at: Course, loss_state: PyTree, weights: list[Array]
    ) -> tuple[list[Array], PyTree, Array, PyTree]:
        """Return G(g, w) of each leaf, the next carried state, the loss `[]`, and g: a step from rest."""
        rest = self.state(at, loss_state, weights, [jnp.zeros_like(w) for w in weights])
        after, value, grads = step_and_grads(self.problem, hparams, rest)
        return self.split(after.opt_state)[0], carried(after.params), value, grads

    def _find_velocity(self, hparams: HParams) -> list[int | None]:
        """Tell for each leaf of the optimizer's state whose velocity it is; None if it is not a float."""
        leaves = jax.tree.leaves(self.start.opt_state)
        num_floats, num = sum(map(tree.is_float, leaves)), len(self.leaves)
        if num_floats != num:
            raise NotMomentum(
                f"keeps {num_floats} float arrays for the {num} of params", "one velocity for each"
            )

        def init(hparams: HParams, weights: PyTree) -> PyTree:
            return self.problem.optimizer(hparams).init(weights)

        # weights of other shapes, each with a size of its own, find themselves in the state
        marked = [
            jax.ShapeDtypeStruct((i + 2, *(1,) * max(w.ndim - 1, 0)), w.dtype)
            for i, w in enumerate(self.leaves)
        ]
        marks = jax.tree.leaves(
            abstract("problem.optimizer", init, hparams, self.treedef.unflatten(marked))
        )
        places = [m.shape[0] - 2 if tree.is_float(m) and m.shape else None for m in marks]
        if sorted(i for i in places if i is not None) != list(range(num)):
            raise NotMomentum("keeps floats that are no velocity of params", "one for each")
        for leaf, i in zip(leaves, places, strict=True):
            if i is not None and leaf.dtype != self.leaves[i].dtype:
                raise ValueError(
                    f"problem.optimizer keeps the velocity of params[{self.names[i]!r}] in {leaf.dtype}, "
                    f"expected {self.leaves[i].dtype}; leave accumulator_dtype out"
                )
        return places

    def _small(self, values: Any) -> list[Array]:
        """Make one-entry leaves of as many dimensions as the weights have."""
        pairs = zip(values, self.leaves, strict=True)
        return [
            jnp.full((1,) * w.ndim, x, jnp.promote_types(w.dtype, jnp.float32)) for x, w in pairs
        ]

    def _respond(
        self, hparams: HParams, fixed: list[Array], grads: Any, velocity: Any, weights: Any
    ) -> tuple[Array, Array, list[Array]]:
        """Update weights of one entry per leaf; return the updates and velocities `[L]`, and new counters."""
        grads, weights = (self.treedef.unflatten(self._small(x)) for x in (grads, weights))
        opt_state = self.join(self._small(velocity), fixed)
        updates, opt_state = self.problem.optimizer(hparams).update(grads, opt_state, weights)
        velocity, fixed = self.split(opt_state)
        return self._numbers(jax.tree.leaves(updates)), self._numbers(velocity), fixed

    def _numbers(self, values: list[Array]) -> Array:
        for name, x in zip(self.names, values, strict=True):
            if x.size != 1:
                raise ValueError(
                    f"problem.optimizer has rates or momenta of shape {x.shape} for params[{name!r}], "
                    "expected one number per leaf; use estimators.reverse"
                )
        wide = jnp.result_type(jnp.float32, *(w.dtype for w in self.leaves))
        return jnp.stack([x.reshape(()).astype(wide) for x in values])

    def _measure(self, hparams: HParams) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest departure from the recursion of each leaf `[L]`, and momenta `[updates, L]`."""
        example = jax.tree.map(lambda h: np.full(jnp.shape(h), 0.5, jnp.result_type(h)), hparams)
        try:
            with jax.ensure_compile_time_eval():
                errors, momenta = (np.asarray(x) for x in jax.jit(self._examine)(example))
        except TypeError as error:  # for example an update that needs the loss
            raise NotMomentum(f"failed on gradients alone ({error})") from error
        return np.where(np.isnan(errors), np.inf, errors).max(0), momenta

    def _classify(self, hparams: HParams) -> bool:
        """Find out what the coefficients depend on; return whether anything changes a momentum.

        The answer comes from the program, not from numbers: a decay may begin late, or at other hparams.
        """
        fixed, zero = self.split(self.start.opt_state)[1], np.zeros(len(self.leaves))
        self.decays = any(uses(lambda w: self._respond(hparams, fixed, zero, zero, w)[0], zero))
        if any(uses(lambda *x: self._respond(hparams, fixed, *x)[2], zero, zero, zero)):
            raise NotMomentum("counts by what the gradients are", "counters of steps alone")
        live = uses(self.coefficients, hparams, fixed)
        self.scheduled = any(live[len(live) - len(fixed) :])
        return any(uses(lambda *x: self.coefficients(*x).momenta, hparams, fixed))

    def _examine(self, hparams: HParams) -> list[Array]:
        """Return how far updates depart from the recursion; momenta of those with one entry per leaf."""
        num, last = len(self.leaves), self.num_steps - 1
        weights = self.treedef.unflatten(self._small(np.zeros(num)))
        fixed = self.split(self.problem.optimizer(hparams).init(weights))[1]
        _, history = self._count(hparams, fixed, self.num_steps)
        steps = np.unique([*range(min(3, last + 1)), *np.linspace(0, last, 64).astype(int)])
        steps = np.repeat(steps if history else steps[:1], 3)
        sizes = np.resize([1e-3, 1.0, 1e3], len(steps))
        entries = np.random.default_rng(0).normal(size=(3, len(steps), num)) * sizes[:, None]

        def examine(
            fixed: list[Array], grads: Array, velocity: Array, weights: Array
        ) -> tuple[Array, Array]:
            momenta, rates, decays = self.coefficients(hparams, fixed)
            assert decays is not None
            _, driven, _ = self._respond(hparams, fixed, grads, np.zeros(num), weights)
            updates, after, _ = self._respond(hparams, fixed, grads, velocity, weights)
            first = _departure(after, driven, momenta * velocity)
            second = _departure(updates, -rates * after, decays * weights)
            return jnp.maximum(first, second), momenta

        then = [x[steps] for x in history]
        errors, momenta = jax.vmap(examine)(then, *entries)
        whole = self._examine_whole(hparams, fixed)
        return [jnp.concatenate([errors, whole[None]]), momenta]

    def _examine_whole(self, hparams: HParams, fixed: list[Array]) -> Array:
        """Return the departure `[L]` from the recursion of an update of weights in their own shapes."""
        momenta, rates, decays = self.coefficients(hparams, fixed)
        assert decays is not None
        optimizer, keys = self.problem.optimizer(hparams), jax.random.split(jax.random.key(0), 3)
        grads, velocity, weights = (
            [_random(jax.random.fold_in(key, i), w) for i, w in enumerate(self.leaves)]
            for key in keys
        )

        def update(velocity: list[Array]) -> tuple[list[Array], list[Array]]:
            trees = self.treedef.unflatten(grads), self.treedef.unflatten(weights)
            updates, opt_state = optimizer.update(trees[0], self.join(velocity, fixed), trees[1])
            return jax.tree.leaves(updates), self.split(opt_state)[0]

        _, driven = update([jnp.zeros_like(v) for v in velocity])
        updates, after = update(velocity)
        errors = []
        for i, w in enumerate(weights):
            first = _departure(after[i], driven[i], momenta[i] * velocity[i])
            second = _departure(updates[i], -rates[i] * after[i], decays[i] * w)
            errors.append(jnp.max(jnp.maximum(first, second), initial=0))
        return jnp.stack(errors)


def _departure(total: Array, *parts: Array) -> Array:
    """Return |total − Σ parts| relative to the largest of them; 0 where all are 0."""
    scale = jnp.max(jnp.abs(jnp.stack([total, *parts])), 0)
    return jnp.abs(total - sum(parts)) / jnp.where(scale == 0, 1, scale)


def _random(key: Array, weights: Array) -> Array:
    """Draw normal numbers in the shape of a leaf, in float32 at least."""
    return jax.random.normal(key, weights.shape, jnp.promote_types(weights.dtype, jnp.float32))
