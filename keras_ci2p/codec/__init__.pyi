# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.

from keras_ci2p.codec.file_format import CompressedImage as CompressedImage
from keras_ci2p.codec.file_format import ImageCodec as ImageCodec
from keras_ci2p.codec.file_format import read_compressed as read_compressed
from keras_ci2p.codec.ms_ssim import ms_ssim as ms_ssim
from keras_ci2p.codec.rans import CodecError as CodecError
from keras_ci2p.codec.rans import decode_symbols as decode_symbols
from keras_ci2p.codec.rans import encode_symbols as encode_symbols
from keras_ci2p.codec.tables import EntropyTables as EntropyTables
from keras_ci2p.codec.tables import quantize_cdf as quantize_cdf
