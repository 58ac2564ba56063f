import os
import platform
import subprocess
import sys

import pytest
import torch
from fake_compiler import make_compiler
from fused_variants import needs_float32

from deepres.backends.device import find_compiler
from deepres.backends.fused import build as kernels
from deepres.backends.fused.build import KernelsUnavailable, load_kernels


@pytest.fixture
def empty_cache(user_cache):
    kernels = user_cache / "kernels"
    kernels.unlink()
    return kernels


@needs_float32
def test_why_there_are_no_kernels(tmp_path, monkeypatch, empty_cache):
    with pytest.raises(KernelsUnavailable, match="no kernels of precision 'float16'"):
        load_kernels("float16")

    include = "In file included from kernels.cpp:3:"
    make_compiler(tmp_path / "cc", monkeypatch, f"echo '{include}' >&2; echo 'x.h:1: error: no' >&2; exit 1")
    with pytest.raises(KernelsUnavailable, match=r"cc failed: x\.h:1: error: no$"):
        load_kernels("float32")
    make_compiler(tmp_path / "cc", monkeypatch, "exit 3")
    with pytest.raises(KernelsUnavailable, match=r"cc failed: exit code 3$"):
        load_kernels("float32")
    assert list(empty_cache.iterdir()) == []  # nothing half-built
    make_compiler(tmp_path / "cc", monkeypatch, 'for last; do :; done; echo nonsense > "$last"')
    with pytest.raises(KernelsUnavailable, match="the compiled kernels do not load: "):
        load_kernels("float32")

    make_compiler(tmp_path / "broken", monkeypatch, "", shell=tmp_path / "absent")
    with pytest.raises(KernelsUnavailable, match="broken does not run: No such file"):
        load_kernels("float32")


@needs_float32
def test_without_a_compiler(empty_cache, no_compiler, monkeypatch):
    with pytest.raises(KernelsUnavailable, match=r"there is no C\+\+ compiler"):
        load_kernels("float32")
    avx512 = dict.fromkeys(("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"), True)
    for capabilities, precision, lacking in (
        ({"avx2": True, "avx512_f": True}, "float32", "fma3"),
        ({}, "float32", "avx2, fma3"),
        ({"avx2": True, "fma3": True}, "bfloat16", "avx512_f, avx512_bw, avx512_vl, avx512_dq, avx512_bf16"),
        (avx512, "bfloat16", "avx512_bf16"),
        ({"neon": True}, "bfloat16", "avx512_f, avx512_bw, avx512_vl, avx512_dq, avx512_bf16"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        with pytest.raises(KernelsUnavailable, match=f"the processor lacks {lacking}$"):
            load_kernels(precision)
    for enough in ({"avx2": True, "fma3": True}, avx512, {"neon": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=enough: found)
        with pytest.raises(KernelsUnavailable, match=r"there is no C\+\+ compiler"):
            load_kernels("float32")


@pytest.mark.skipif(find_compiler() is None or platform.machine() != "x86_64", reason="no C++ compiler for x86-64")
@pytest.mark.parametrize(
    ("processor", "precision", "size"),
    [("haswell", "float32", 32), ("skylake-avx512", "float32", 24), ("cooperlake", "bfloat16", 24)],
)
def test_the_kernels_compile_for_every_processor(processor, precision, size, tmp_path):
    flags = [flag for flag in kernels.FLAGS if flag not in ("-O3", kernels.NATIVE)]
    command = [
        find_compiler(),
        *flags,
        "-fopenmp",
        f"-march={processor}",
        *kernels.PRECISION_FLAGS[precision],
        f"-DDEEPRES_SIZE={size}",
    ]
    subprocess.run([*command, str(kernels.SOURCE), "-o", str(tmp_path / "kernels.so")], check=True)


@needs_float32
@pytest.mark.parametrize(
    ("version", "flags"),
    [
        ("g++ (GCC) 14.2.0", "-fopenmp"),
        ("clang version 19.1.1", "-fopenmp"),
        ("Apple clang version 16.0.0 (clang-1600.0.26.3)", "-Xpreprocessor -fopenmp -undefined dynamic_lookup"),
    ],
)
def test_how_a_compiler_is_asked_for_openmp(version, flags, tmp_path, monkeypatch, empty_cache):
    make_compiler(tmp_path / "cc", monkeypatch, 'echo "error: $*" >&2; exit 1', version=version)
    with pytest.raises(KernelsUnavailable, match=f"-fPIC {flags} -DDEEPRES_FLOAT32"):
        load_kernels("float32")


@needs_float32
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KernelsUnavailable, match=r"cannot write to .*file.*: Not a directory"):
        load_kernels("float32")


@needs_float32
def test_two_processes_may_build_at_once(tmp_path):
    program = (
        "from deepres.backends.fused.build import load_kernels; print(load_kernels('float32').chunk_grads_size())"
    )
    quick = tmp_path / "c++"  # what is built has no part in this
    quick.write_text(f'#!/bin/sh\nexec "{find_compiler()}" "$@" -O0\n')
    quick.chmod(0o755)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CXX": str(quick)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    sizes = [int(process.communicate()[0]) for process in processes]
    assert sizes[0] == sizes[1] > 0
    if sys.platform == "linux":
        assert len(list((tmp_path / "deepres" / "kernels").iterdir())) == 1
