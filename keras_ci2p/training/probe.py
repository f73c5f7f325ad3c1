"""A linear probe: multinomial logistic regression on features that stay as they are."""

import numpy as np

# Prior variance of each weight on features of variance 1 (the C of scikit-learn's LogisticRegression).
PRIOR_VARIANCE = 0.005
_STEPS, _MEMORY, _TOLERANCE = 200, 10, 1e-3


def fit_probe(features, labels, num_classes, weight=1.0):
    """Fits logits to labels by L-BFGS.

    Minimises the sum of the cross-entropies and of the squared weights over twice `PRIOR_VARIANCE`; the features are
    standardised for it.

    Args:
        features: float array `(examples, dim)`.
        labels: int array `(examples,)`, in 0..num_classes-1.
        num_classes: Number of classes.
        weight: Of each example; 0.5 where each photo stands there in two views.

    Returns:
        `(kernel, bias)`, float32 `(dim, num_classes)` and `(num_classes,)`: the logits are `features @ kernel + bias`.
    """
    features = np.asarray(features, "float32")
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # What never varies tells nothing, and gets no weight.
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)
    standardised = (features - mean) * scale
    targets = np.eye(num_classes, dtype="float32")[labels]

    def loss_and_gradient(parameters):
        kernel, bias = parameters[:-1], parameters[-1]
        logits = standardised @ kernel.astype("float32") + bias.astype("float32")
        logits -= logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = weight * np.sum(log_sum[:, 0] - np.sum(logits * targets, axis=1), dtype="float64")
        errors = weight * (np.exp(logits - log_sum) - targets)
        gradient = np.concatenate([standardised.T @ errors + kernel / PRIOR_VARIANCE, errors.sum(axis=0)[None]])
        return loss + np.sum(kernel**2) / (2 * PRIOR_VARIANCE), gradient

    parameters = _minimise(loss_and_gradient, np.zeros((features.shape[1] + 1, num_classes)))
    kernel = parameters[:-1] * scale[:, None]
    return kernel.astype("float32"), (parameters[-1] - mean @ kernel).astype("float32")


def _minimise(function, x):
    """The minimum of a convex function, by L-BFGS with backtracking (Nocedal and Wright, algorithm 7.4)."""
    loss, gradient = function(x)
    first = np.abs(gradient).max()
    memory = []
    for _ in range(_STEPS):
        if np.abs(gradient).max() <= _TOLERANCE * first:
            break
        direction = -gradient
        used = []
        for step, change, curvature in reversed(memory):
            alpha = np.sum(step * direction) / curvature
            direction -= alpha * change
            used.append(alpha)
        if memory:
            step, change, curvature = memory[-1]
            direction *= curvature / np.sum(change**2)
        else:
            direction /= max(np.abs(gradient).sum(), 1)
        for (step, change, curvature), alpha in zip(memory, reversed(used), strict=True):
            direction += step * (alpha - np.sum(change * direction) / curvature)
        slope, rate = np.sum(gradient * direction), 1.0
        while rate > 1e-6:
            new_loss, new_gradient = function(x + rate * direction)
            if new_loss <= loss + 1e-4 * rate * slope:
                break
            rate /= 2
        else:
            # Rounding is all that is left.
            break
        step, change = rate * direction, new_gradient - gradient
        curvature = np.sum(step * change)
        if curvature > 0:
            memory = [*memory[1 - _MEMORY :], (step, change, curvature)]
        x, loss, gradient = x + step, new_loss, new_gradient
    return x
