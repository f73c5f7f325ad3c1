"""The one rule that says which photos are for validation."""

VALIDATION_SHARE = 0.2


def validation_mask(digests, labels):
    """Which photos belong to the validation split.

    In each class the photos are sorted by the SHA-256 of their bytes, and the first `round(0.2 n)` of the `n` are
    validation: no seed, no dependence on names. Byte-identical copies of a validation photo, in any class, are
    validation too.

    Args:
        digests: Hexadecimal SHA-256 of each file.
        labels: Class of each file.

    Returns:
        List of bool, True for validation.
    """
    by_class = {}
    for digest, label in zip(digests, labels, strict=True):
        by_class.setdefault(label, []).append(digest)
    validation = set()
    for members in by_class.values():
        validation.update(sorted(members)[: round(VALIDATION_SHARE * len(members))])
    return [digest in validation for digest in digests]
