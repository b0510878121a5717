"""Estimators that differentiate through the steps of training.

- `adjoint`: The backward pass over a training run: how the adjoint of the weights becomes a hypergradient.
- `base`: Helpers that estimators share when they differentiate through every step of training.
- `darts`: One-step hypergradients in the form of DARTS: one virtual step while training continues.
- `drift`: Reverse-mode hypergradients that undo training in floating point, from one stored state to the
  next.
- `forward`: Forward-mode hypergradients: exact, for few hyperparameters and any horizon, in constant
  memory.
- `hd`: Hypergradient descent: the learning rate's derivative from two gradients that training computes
  anyway.
- `inner_gradient`: The gradient of an inner loss whose own reverse mode is mixed: for loops of the
  user's own.
- `integers`: Products of integers by fractions that can be undone to the bit, in vectors of int32 or int64.
- `momentum`: SGD with momentum inside a user's optimizer: found, checked, and taken apart so that steps can
  be undone.
- `offload`: States of a backward pass in the memory of the host, where an accelerator has another one of its
  own.
- `on_disk`: Reverse-mode hypergradients whose states lie on disk: for horizons whose states no memory holds.
- `online`: Helpers that estimators share when they take hypergradients while training continues.
- `pull_step`: One step of the backward pass: the adjoint goes back through the optimizer and through the
  gradient.
- `reverse`: Reverse-mode hypergradients: exact, for many hyperparameters and a horizon that fits in memory.
- `reversible`: Reverse-mode hypergradients that run training backwards exactly, in integers.
- `rtho`: Real-time hypergradients: forward mode along a training run that continues while its hparams
  change.
- `run_folder`: The folder of a run on disk: files by kind and step, a description, and one writer at a time.
- `tangent`: The forward pass over a training run, along which the derivative of the weights travels with
  them.
- `truncated`: Truncated reverse-mode hypergradients: exact training, differentiated through its last steps
  only.
"""
