"""Triton's compilers take the kernels of the fused KL head, for GPUs of two makers; no GPU is needed for that.

``test_kl_triton.py`` runs this file by itself: the kernels must not be the interpreter's.
"""

import subprocess

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saelora.core import kl_triton

GPUS = {"H100": GPUTarget("cuda", 90, 32), "MI300": GPUTarget("hip", "gfx942", 64)}
LOGITS = {f"{name}_ptr" for name in ("logits", "bias", "teacher", "student", "teacher_bias", "student_bias")}
POINTERS = {"label_ptr": "*i64", "top_ptr": "*i32"}
FLAGS = {
    "row_stats": {"HAS_BIAS": True, "HAS_CAP": True, "HAS_LABEL": True},
    "kl_and_gradient": {
        **{"TEACHER_BIAS": True, "STUDENT_BIAS": True, "TEACHER_CAP": True, "STUDENT_CAP": True},
        "GRADIENT": True,
    },
}
D_VOCAB = 256_000


def compiled(name, gpu, precision):
    """A kernel as it is launched for logits in a precision, with all that it can be asked for."""
    kernel, tiling = getattr(kl_triton, name), kl_triton._tiling(D_VOCAB)
    constants = {**FLAGS[name], "BLOCK": tiling["BLOCK"]}
    kinds = {}
    for argument in kernel.arg_names:
        if argument in constants:
            kinds[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            kinds[argument] = f"*{precision}" if argument in LOGITS else POINTERS.get(argument, "*fp32")
        else:
            kinds[argument] = "i32" if argument == "d_vocab" else "fp32"
    aligned = {(i,): [["tt.divisibility", 16]] for i, (_, kind) in enumerate(kinds.items()) if kind[0] in "*i"}
    source = ASTSource(kernel, kinds, constants, aligned)
    return triton.compile(source, target=GPUS[gpu], options={"num_warps": tiling["num_warps"]})


@pytest.mark.parametrize(("gpu", "precision"), [("H100", "bf16"), ("H100", "fp32"), ("MI300", "bf16")])
@pytest.mark.parametrize("name", FLAGS)
def test_kernel_compiles_and_spills_no_registers(name, gpu, precision, tmp_path):
    found = compiled(name, gpu, precision)
    binary = tmp_path / "kernel"
    binary.write_bytes(found.asm["cubin" if GPUS[gpu].backend == "cuda" else "hsaco"])
    if GPUS[gpu].backend == "cuda":
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "STACK:0" in usage.stdout + usage.stderr
        assert "LOCAL:0" in usage.stdout + usage.stderr
    else:
        assert ".vgpr_spill_count: 0" in " ".join(found.asm["amdgcn"].split())
