"""What a model costs, in multiply-accumulates."""

from keras_ci2p.flops.count import MacCount, PartCount, count_macs

__all__ = ["MacCount", "PartCount", "count_macs"]
