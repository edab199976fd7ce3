"""The loop of training: step after step, metrics one step late, checkpoints, a clean stop."""

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from selfparam_jax.training.optimizer import set_learning_rate
from selfparam_jax.training.train_step import Batch, TrainState


class NotFiniteError(ArithmeticError):
    """The loss became NaN or infinite; `step` is the step at which it did."""

    def __init__(self, step: int, loss: float):
        super().__init__(
            f"the loss is {loss} at step {step}; training stopped and the last checkpoint before it is kept. "
            "Lower train.learning_rate or train.clip_norm, or raise train.warmup"
        )
        self.step = step


def fit(
    state: TrainState,
    params: dict,
    step_function: Callable,
    data: Iterator[Batch],
    key: jax.Array,
    on_metrics: Callable[[int, dict], None],
    on_checkpoint: Callable[[int, TrainState], None],
    checkpoint_every: int = 0,
    stop_requested: Callable[[], bool] = lambda: False,
    *,
    learning_rates: np.ndarray | None,
    sample_every: int = 0,
    on_sample: Callable[[int, TrainState], None] = lambda step, state: None,
) -> TrainState:
    """Runs the steps that are left, and returns the state after the last one (or after the stop).

    Metrics are fetched one step late, so that the device never waits for the host, except before a
    checkpoint: a state is only passed to `on_checkpoint` once its own step's loss is known to be finite.

    Args:
      state: after the steps done so far; its memory is given away.
      params: of the frozen base, on the mesh.
      step_function: of `compile_step`.
      data: batches of the steps that are left.
      key: of the dropout; folded with the number of the step.
      on_metrics: called with the number of each finished step, from 1, and {'loss', 'grad_norm', 'seconds'}.
      on_checkpoint: called with a number of steps and the state after them, to be saved.
      checkpoint_every: steps from one call of `on_checkpoint` to the next; 0: only at the end (or the stop).
      stop_requested: asked once after every step; True stops and saves.
      learning_rates: float32 [steps], of `optimizer.learning_rates`; set before each step. None for an optimizer that
        is not of `make_optimizer`.
      sample_every: steps from one call of `on_sample` to the next; 0: none.
      on_sample: called with a number of steps and the state after them, which is only lent; its time is no step's.

    Returns:
      the state after the last step done.

    Raises:
      NotFiniteError: a loss is NaN or infinite.
    """
    pending: list[tuple[int, dict]] = []
    began, step, saved = time.perf_counter(), int(state.step), int(state.step)

    def report_pending():
        nonlocal began
        for done, metrics in pending:
            values = {name: float(value) for name, value in metrics.items()}
            if not all(np.isfinite(value) for value in values.values()):
                raise NotFiniteError(done, values["loss"])
            now = time.perf_counter()
            on_metrics(done, {**values, "seconds": now - began})
            began = now
        pending.clear()

    for batch in data:
        if learning_rates is not None:
            state = state.replace(opt_state=set_learning_rate(state.opt_state, learning_rates[step]))
        state, metrics = step_function(state, params, batch, key)
        step += 1
        report_pending()
        pending.append((step, metrics))
        if checkpoint_every and step % checkpoint_every == 0:
            report_pending()
            on_checkpoint(step, state)
            saved = step
        if sample_every and step % sample_every == 0:
            report_pending()
            on_sample(step, state)
            began = time.perf_counter()
        if stop_requested():
            break
    report_pending()
    if step != saved:
        on_checkpoint(step, state)
    return state
