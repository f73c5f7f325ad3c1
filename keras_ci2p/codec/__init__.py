"""Bitstreams: CompressAI's entropy coder, its tables, and files of compressed images. Knows integers, no Keras."""

from keras_ci2p.names import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "file_format": ["CompressedImage", "ImageCodec", "read_compressed"],
        "ms_ssim": ["ms_ssim"],
        "rans": ["CodecError", "decode_symbols", "encode_symbols"],
        "tables": ["EntropyTables", "quantize_cdf"],
    },
)
