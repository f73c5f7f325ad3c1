"""Loss, outputs and gradients of one training-mode step, on whichever backend runs."""

import keras


def training_step(model, loss_fn, images, targets):
    """`(loss, outputs, gradients)` as numpy; moving statistics are updated as in training."""
    step = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}[keras.backend.backend()]
    loss, outputs, gradients = step(model, loss_fn, images, targets)
    to_numpy = keras.ops.convert_to_numpy
    return float(to_numpy(loss)), to_numpy(outputs), [None if g is None else to_numpy(g) for g in gradients]


def _torch(model, loss_fn, images, targets):
    model.zero_grad()
    outputs = model(images, training=True)
    loss = loss_fn(targets, outputs)
    loss.backward()
    return loss, outputs, [variable.value.grad for variable in model.trainable_variables]


def _tensorflow(model, loss_fn, images, targets):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = loss_fn(targets, outputs)
    return loss, outputs, tape.gradient(loss, [variable.value for variable in model.trainable_variables])


def _jax(model, loss_fn, images, targets):
    import jax

    def compute(trainable, non_trainable):
        outputs, non_trainable = model.stateless_call(trainable, non_trainable, images, training=True)
        return loss_fn(targets, outputs), (outputs, non_trainable)

    trainable = [variable.value for variable in model.trainable_variables]
    non_trainable = [variable.value for variable in model.non_trainable_variables]
    (loss, (outputs, non_trainable)), gradients = jax.jit(jax.value_and_grad(compute, has_aux=True))(
        trainable, non_trainable
    )
    for variable, value in zip(model.non_trainable_variables, non_trainable, strict=True):
        variable.assign(value)
    return loss, outputs, gradients


def gradients_of(layer, compute):
    """`(loss, gradients)` of `compute()` by the trainable variables of `layer`, as numpy."""
    variables = layer.trainable_variables
    backend = keras.backend.backend()
    if backend == "torch":
        layer.zero_grad()
        loss = compute()
        loss.backward()
        gradients = [variable.value.grad for variable in variables]
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = compute()
        gradients = tape.gradient(loss, [variable.value for variable in variables])
    else:
        import jax

        def stateless(values):
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return compute()

        loss, gradients = jax.jit(jax.value_and_grad(stateless))([variable.value for variable in variables])
    to_numpy = keras.ops.convert_to_numpy
    return float(to_numpy(loss)), [None if g is None else to_numpy(g) for g in gradients]
