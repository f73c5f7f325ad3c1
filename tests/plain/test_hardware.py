import platform

import pytest

from keras_ci2p import backend as hardware


@pytest.mark.parametrize(
    ("flags", "name"),
    [("fpu avx avx2", "EPYC, AVX2"), ("avx2 avx512f avx512bw", "EPYC, AVX-512"), ("fpu sse2", "EPYC")],
)
def test_the_processor_is_named_with_its_widest_vectors(tmp_path, monkeypatch, flags, name):
    path = tmp_path / "cpuinfo"
    core = f"processor\t: 0\nmodel name\t: EPYC\nflags\t\t: {flags}\n\n"
    path.write_text(core + core)
    monkeypatch.setattr(hardware, "_CPU_FILE", path)
    assert hardware.hardware()["cpu"] == name


def test_elsewhere_the_system_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CPU_FILE", tmp_path / "none")
    assert hardware.hardware()["cpu"] == (platform.processor() or platform.machine())
