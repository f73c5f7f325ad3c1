"""What a user names as data: a folder of photos, or a set of TensorFlow Datasets."""

from pathlib import Path

from keras_ci2p.data.folder import ImageManifest, scan_folder
from keras_ci2p.data.tfds import PREFIX, open_tfds


def open_data(source, data_dir=None):
    """The photos that `source` names.

    Args:
        source: Folder with one subfolder per class, or with such folders train, val and test (`scan_folder`);
            "tfds:NAME[/CONFIG][:VERSION]", a prepared image classification set of TFDS (extra `tfds`); or a manifest,
            which is returned as it is.
        data_dir: Where the sets of TFDS are; None for $TFDS_DATA_DIR, else `~/tensorflow_datasets`.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: Data that cannot be used as they are.
        ImportError: The extra is not installed.
    """
    if isinstance(source, ImageManifest):
        return source
    if str(source).startswith(PREFIX):
        return open_tfds(str(source).removeprefix(PREFIX), data_dir)
    return scan_folder(Path(source))
